"""Input and output embedding as one table or as two: whether they are tied, and what of config.json decides it, found by trying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from graftkit.architecture.accounting import Structure
from graftkit.architecture.blocks.trace import trace_model
from graftkit.architecture.embeddings import INPUT, OUTPUT
from graftkit.architecture.skeleton import Path, Skeleton, build_skeleton, with_values
from graftkit.architecture.tying import FLAG, connected, flag_places, tied_group
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, few


class Way(NamedTuple):
    """A config.json that ties the output table or does not, and the class as that config builds it."""

    config: Mapping[str, Any]
    skeleton: Skeleton


def are_tied(checkpoint: Checkpoint, structure: Structure) -> bool:
    """Whether the loader makes one table of both embeddings: the class ties them, and where both are stored they are equal."""
    skeleton = structure.skeleton
    output = min(skeleton.weight_names(OUTPUT))
    return not tied_group(output, checkpoint, structure).isdisjoint(skeleton.weight_names(INPUT))


def ties_of_output(skeleton: Skeleton) -> Iterator[tuple[str, str]]:
    """Yield the ties ``(target, source)`` of which one side is a parameter of the output embedding, such as its bias."""
    for target, source in skeleton.tied.items():
        if in_output(skeleton, target) or in_output(skeleton, source):
            yield target, source


def in_output(skeleton: Skeleton, name: str) -> bool:
    """Whether a name in memory is that of a parameter of the output embedding."""
    return name.startswith(tuple(table.removesuffix("weight") for table in skeleton.weight_names(OUTPUT)))


def find_way(config: Mapping[str, Any], before: Skeleton, *, tied: bool) -> Way:
    """Find a config.json with which the class ties its output table or does not, and is in all else as it was.

    As it is, with the flag everywhere, outermost alone, and in each sub-config alone are tried, in this order.

    Raises:
        InputRejected: none of them does that.
    """
    reason = f"{'never ties' if tied else 'ties'} its output table, whatever config.json says"
    for places in _choices(config):
        changed = with_values(config, places, tied) if places else config
        try:
            after = build_skeleton(changed, before.architecture) if places else before
        except InputRejected as error:
            reason = f"does not take {FLAG}: {error}"
            continue
        if _class_ties(after) != tied:
            continue
        beyond = _other_ties(before, after)
        if not beyond and (after is before or trace_model(before) == trace_model(after)):
            return Way(changed, after)
        if beyond:
            reason = f"{'ties' if tied else 'parts'} {few(beyond)} too by the same value of config.json, not the output table alone"
        else:
            reason = f"computes something else where {FLAG} is {str(tied).lower()}, so that its outputs would change"
    raise InputRejected(f"{before.architecture}: {reason}")


def _choices(config: Mapping[str, Any]) -> list[tuple[Path, ...]]:
    places = flag_places(config)
    return list(dict.fromkeys([(), places, *((place,) for place in places)]))


def _class_ties(skeleton: Skeleton) -> bool:
    """Whether the class ties both embeddings, whatever is stored."""
    return not connected(min(skeleton.weight_names(OUTPUT)), skeleton.tied).isdisjoint(skeleton.weight_names(INPUT))


def _other_ties(before: Skeleton, after: Skeleton) -> frozenset[str]:
    """Weights that only one of the two ties, and that are not of the output embedding."""
    changed = before.tied.items() ^ after.tied.items()
    ours = {*ties_of_output(before), *ties_of_output(after)}
    return frozenset(target for target, _ in changed - ours)
