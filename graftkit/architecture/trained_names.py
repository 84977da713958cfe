"""Which entries of a training's state are the model's weights, and what the class calls them: found by the names of the class.

Trainers save a state with the model inside, under a name of their own (``model``, ``app.model``, ``module``), and wrappers add steps to
the names of what they wrap. No list of trainers is needed: the prefix is right that leaves most names that the class has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from graftkit.architecture.skeleton import Skeleton, build_skeleton
from graftkit.checkpoint.distributed.chosen import Chosen
from graftkit.errors import InputRejected, few, plural, printable

#: Steps that torch's wrappers put into the names of parameters: FSDP, activation checkpointing, torch.compile, and DDP.
WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def find_weights(config: Mapping[str, Any], entries: Collection[str], *, prefix: str | None = None) -> Chosen:
    """The names of the model's weights among ``entries``, and what the class calls each; the others are skipped.

    The weights stand under the prefix, of whole steps, that leaves most names of the class, and most of them as the class itself
    spells them; of prefixes that lie in one another the shortest, and never one of two that lie apart. An entry under it is skipped if
    its name holds that of a weight between other steps, as an optimizer's does.

    Raises:
        InputRejected: no prefix leaves a name of the class, or several do equally well.
    """
    skeleton = build_skeleton(config)
    plain = {entry: _unwrapped(entry) for entry in entries}
    prefix = _best_prefix(plain.values(), skeleton) if prefix is None else prefix
    start = f"{prefix}." if prefix else ""
    under = {entry: name[len(start) :] for entry, name in plain.items() if name.startswith(start)}
    if not under:
        raise InputRejected(f"prefix: no entry begins with {printable(start)!r}; they are called {few(plain.values())}")
    own = {name for name, (key, _) in skeleton.memory_names(under.values()).items() if key in skeleton.shapes}
    weights = {entry: name for entry, name in under.items() if name in own or not _is_state_of(name, own)}
    if len(set(weights.values())) != len(weights):
        twice = next(name for name, count in Counter(weights.values()).items() if count > 1)
        raise InputRejected(f"{printable(twice)!r} stands there twice, once under the names that a wrapper gives")
    return Chosen(weights, tuple(entry for entry in entries if entry not in weights))


def _unwrapped(entry: str) -> str:
    return ".".join(step for step in entry.split(".") if step not in WRAPPERS)


def _best_prefix(names: Iterable[str], skeleton: Skeleton) -> str:
    """See :func:`find_weights`."""
    held = list(names)
    below: Counter[str] = Counter()
    for name in held:
        steps = name.split(".")
        below.update(".".join(steps[:count]) for count in range(len(steps)))
    best, found = (1, 0), list[str]()
    for prefix, count in sorted(below.items(), key=lambda item: -item[1]):
        if count < best[0]:
            break
        known = _known(
            tuple(name[len(prefix) + 1 if prefix else 0 :] for name in held if _is_below(name, prefix)), skeleton
        )
        if known >= best:
            found = [*(found if known == best else ()), prefix]
            best = known
    found = [one for one in found if not any(one != other and _is_below(one, other) for other in found)]
    if not found:
        raise InputRejected(
            f"no entry is called as a weight of {skeleton.architecture} is, whatever stands before its name: {few(held)};"
            " is config.json that of the model that was trained?"
        )
    if len(found) > 1:
        raise InputRejected(
            f"{plural(len(found), 'set')} of entries are called as the weights of {skeleton.architecture} are, under"
            f" {few(found)}; name one with prefix: {printable(min(found))}"
        )
    return found[0]


def _is_below(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}.")


def _known(names: tuple[str, ...], skeleton: Skeleton) -> tuple[int, int]:
    """How many of ``names`` the loader takes for names of the class, and how many of these it need not change for that."""
    found = skeleton.memory_names(names)
    known = [(name, key, converted) for name, (key, converted) in found.items() if key in skeleton.shapes]
    return len(known), sum(converted or name == key for name, key, converted in known)


def _is_state_of(name: str, own: Collection[str]) -> bool:
    """Whether the name of a weight stands in ``name`` between other steps."""
    steps = name.split(".")
    spans = ((first, last) for first in range(len(steps)) for last in range(first + 1, len(steps) + 1))
    return any(".".join(steps[first:last]) in own for first, last in spans if (first, last) != (0, len(steps)))
