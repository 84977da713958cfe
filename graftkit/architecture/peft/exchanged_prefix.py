"""Whether an adapter's modules are a base's under another prefix: those of a text model in a wrapper, or of a backbone under a head."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from graftkit.architecture.peft.parts import PREFIX
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.adapter import Adapter
from graftkit.errors import plural, printable

#: A name, component by component.
Parts = tuple[str, ...]

Shape = tuple[int, ...]

#: What peft puts between the name of a module and what it adds to it, beside the parts that begin with ``lora_``.
INSIDE = ("base_layer", "token_adapter")


def exchanged_prefix(skeleton: Skeleton, adapter: Adapter) -> str | None:
    """What to say of an adapter of which some modules are no modules of ``skeleton``, and all are once one prefix is exchanged.

    Names and shapes must agree, and of the exchanges that leave most of a name only one may do. None where that is not so, which
    costs nothing where every module has its place. Asked before peft changes the model of ``skeleton``.
    """
    base: dict[Parts, dict[str, Shape]] = {}
    for name, shape in skeleton.shapes.items():
        *path, leaf = name.split(".")
        base.setdefault(tuple(path), {})[leaf] = shape
    strange = {path: held for path, held in _modules_of(adapter).items() if path not in base}
    older = _older_names(skeleton, strange)
    lost = {path: held for path, held in strange.items() if path not in older}
    if not lost:
        return None
    first = min(lost)
    fitting: dict[int, set[tuple[Parts, Parts]]] = {}
    for place in base:
        if length := _common_end(first, place):
            old, new = first[:-length], place[:-length]
            if all(_fits(base, path, held, old, new) for path, held in lost.items()):
                fitting.setdefault(length, set()).add((old, new))
    longest = max(fitting, default=0)
    if longest == 0 or len(fitting[longest]) > 1:
        return None
    ((old, new),) = fitting[longest]
    theirs, ours = (".".join((*prefix, first[-longest])) for prefix in (old, new))
    return (
        f"the adapter's {printable(theirs)!r} is the base's {printable(ours)!r}, by which {plural(len(lost), 'module')} would find a"
        " place of the same shape; rename the adapter's keys, or give the model that it was trained on as base_model"
    )


def _modules_of(adapter: Adapter) -> dict[Parts, list[tuple[Parts, Shape]]]:
    """Name of each module that the adapter changes -> what lies behind that name, with the shape."""
    found: dict[Parts, list[tuple[Parts, Shape]]] = {}
    for name, tensor in adapter.tensors.items():
        parts = tuple(name.removeprefix(PREFIX).split("."))
        inside = (i for i, part in enumerate(parts) if part in INSIDE or part.startswith("lora_"))
        end = next(inside, len(parts) - 1)
        found.setdefault(parts[:end], []).append((parts[end:], tensor.shape))
    return found


def _older_names(skeleton: Skeleton, paths: Collection[Parts]) -> frozenset[Parts]:
    """Those of ``paths`` that the loader, and so peft, renames to a module's; a prefix that only the loader adds does not count."""
    names = {".".join((*path, "weight")): path for path in paths}
    known, prefix = (skeleton.memory_names(names) if names else {}), skeleton.model.base_model_prefix
    return frozenset(
        path
        for name, path in names.items()
        if (now := known[name].name) in skeleton.shapes and now != f"{prefix}.{name}" and name != f"{prefix}.{now}"
    )


def _common_end(one: Parts, other: Parts) -> int:
    """How many components are the same, counted from the end."""
    length = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        length += 1
    return length


def _fits(
    base: Mapping[Parts, Mapping[str, Shape]], path: Parts, held: list[tuple[Parts, Shape]], old: Parts, new: Parts
) -> bool:
    """Whether a module of the adapter has a place in the base, with ``new`` for ``old`` at the beginning of its name."""
    if path[: len(old)] != old:
        return False
    place = base.get(new + path[len(old) :])
    return place is not None and all(_has_room(place, behind, shape) for behind, shape in held)


def _has_room(place: Mapping[str, Shape], behind: Parts, shape: Shape) -> bool:
    """Whether a saved weight has the shape of the base's, and a factor, a bias or rows one of its sizes."""
    if len(behind) == 1 and behind[0] in place:
        return place[behind[0]] == shape
    return any(not set(shape).isdisjoint(weight) for weight in place.values())
