"""Whether an adapter's modules are a base's under another prefix: those of a text model in a wrapper, or of a backbone under a head."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from graftkit.architecture.names import MemoryName
from graftkit.architecture.peft.adapter_modules import Parts, Shape, modules_of, modules_of_class
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.adapter import Adapter
from graftkit.errors import plural, printable


@dataclass(frozen=True, slots=True)
class Exchange:
    """Names begin with ``new`` in the class where they begin with ``old`` in the adapter."""

    old: Parts
    new: Parts

    def place(self, path: Parts) -> Parts | None:
        """The name in the class; None of one that begins otherwise."""
        return self.new + path[len(self.old) :] if path[: len(self.old)] == self.old else None


def exchanged_prefix(skeleton: Skeleton, adapter: Adapter) -> str | None:
    """What to say of an adapter of which some modules are no modules of ``skeleton``, and all are once one prefix is exchanged.

    Names and shapes must agree, and of the exchanges that leave most of a name only one may do. None where that is not so, which
    costs nothing where every module has its place. Asked before peft changes the model of ``skeleton``.
    """
    base = modules_of_class(skeleton)
    strange = {path: held for path, held in modules_of(adapter).items() if path not in base}
    older = older_names(skeleton, strange)
    lost = {path: held for path, held in strange.items() if path not in older}
    exchanges = find_exchanges(base, lost)
    if len(exchanges) != 1:
        return None
    first = min(lost)
    place = exchanges[0].place(first) or ()
    left = common_end(first, place)
    theirs, ours = (".".join(name[: len(name) - left + 1]) for name in (first, place))
    return (
        f"the adapter's {printable(theirs)!r} is the base's {printable(ours)!r}, by which {plural(len(lost), 'module')} would find a"
        " place of the same shape; retarget_adapter writes it with the base's names, or give the model that it was trained on as"
        " base_model"
    )


def find_exchanges(
    base: Mapping[Parts, Mapping[str, Shape]], lost: Mapping[Parts, list[tuple[Parts, Shape]]]
) -> list[Exchange]:
    """The exchanges by which every module of ``lost`` has a place in ``base``: those that leave most of a name."""
    if not lost:
        return []
    first = min(lost)
    fitting: dict[int, list[Exchange]] = {}
    for exchange in exchanges_for(base, first):
        if all(fits(base, path, held, exchange) for path, held in lost.items()):
            fitting.setdefault(len(first) - len(exchange.old), []).append(exchange)
    return fitting[max(fitting)] if fitting else []


def exchanges_for(base: Mapping[Parts, Mapping[str, Shape]], path: Parts) -> Iterator[Exchange]:
    """Yield the exchange of as little as possible for each module of ``base`` whose name ends as ``path`` does."""
    for place in base:
        if length := common_end(path, place):
            yield Exchange(path[:-length], place[:-length])


def older_names(skeleton: Skeleton, paths: Collection[Parts]) -> dict[Parts, MemoryName]:
    """Those of ``paths`` that the loader, and so peft, renames to a module's; a prefix that only the loader adds does not count."""
    names = {".".join((*path, "weight")): path for path in paths}
    known, prefix = (skeleton.memory_names(names) if names else {}), skeleton.model.base_model_prefix
    return {
        path: known[name]
        for name, path in names.items()
        if (now := known[name].name) in skeleton.shapes and now != f"{prefix}.{name}" and name != f"{prefix}.{now}"
    }


def common_end(one: Parts, other: Parts) -> int:
    """How many components are the same, counted from the end."""
    length = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        length += 1
    return length


def fits(
    base: Mapping[Parts, Mapping[str, Shape]], path: Parts, held: list[tuple[Parts, Shape]], exchange: Exchange
) -> bool:
    """Whether a module of the adapter has a place of its shape in the base by this exchange."""
    name = exchange.place(path)
    place = None if name is None else base.get(name)
    return place is not None and all(_has_room(place, behind, shape) for behind, shape in held)


def _has_room(place: Mapping[str, Shape], behind: Parts, shape: Shape) -> bool:
    """Whether a saved weight has the shape of the base's, and a factor, a bias or rows one of its sizes."""
    if len(behind) == 1 and behind[0] in place:
        return place[behind[0]] == shape
    return any(not set(shape).isdisjoint(weight) for weight in place.values())
