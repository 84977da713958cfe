"""Which tensors of a model are those of another class: the text model of a wrapper, the encoder of two, the base under a head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import WHOLE
from graftkit.errors import InputRejected

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from graftkit.architecture.skeleton import Skeleton


@dataclass(frozen=True, slots=True)
class Part:
    """A class as a part of a model that has more, by names in memory.

    Attributes:
        names: name in the part -> name in the whole, of each tensor that both have.
        modules: the largest module of the whole, itself a model of transformers, that the part has with every tensor, and what
            the part calls it.
    """

    names: Mapping[str, str]
    modules: tuple[str, str]


def find_part(whole: Skeleton, part: Skeleton) -> Part:
    """Find the place in which most tensors agree in name and shape; see :func:`lay_on`.

    Raises:
        InputRejected: nothing agrees, or two places do equally well.
    """
    best = lay_on(part.model, part.shapes, whole.model, whole.shapes)
    if not best:
        raise InputRejected(f"no tensor of {part.architecture} is in {whole.architecture}")
    if len(best) > 1:
        wanted = part.model.config.to_dict()
        same = [p for p, places in best.items() if any(_config(whole, place) == wanted for place in places)]
        best = {pairs: best[pairs] for pairs in same} if len(same) == 1 else best
    if len(best) > 1:
        places = " or ".join(repr(places[0]) for places in best.values())
        raise InputRejected(f"{part.architecture} may be more than one part of {whole.architecture}: {places}")
    (pairs,) = best
    names = dict(sorted(pairs))
    return Part(names, _shared_module(whole, part, {other: name for name, other in names.items()}))


def lay_on(
    part: PreTrainedModel, held: Mapping[str, object], whole: PreTrainedModel, there: Mapping[str, object]
) -> dict[frozenset[tuple[str, str]], list[str]]:
    """Lay the models inside both on one another, each on each, and keep where most tensors agree; empty where none does.

    ``held`` and ``there`` are the tensors of both by name, with what has to agree, such as shapes. What lies outside of the two models
    that are laid on one another has to have one name in both. Returns the pairs of names, with the models of ``whole`` that give them.
    """
    found: dict[frozenset[tuple[str, str]], list[str]] = {}
    for theirs in _models(whole):
        for ours in _models(part):
            moved = {name: _exchanged(name, ours, theirs) for name in held}
            fitting = frozenset((name, other) for name, other in moved.items() if there.get(other) == held[name])
            found.setdefault(fitting, []).append(theirs)
    most = max(map(len, found))
    return {pairs: places for pairs, places in found.items() if most and len(pairs) == most}


def _models(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of the models of transformers in a model, itself first."""
    from transformers import PreTrainedModel

    yield from (name for name, module in model.named_modules() if isinstance(module, PreTrainedModel))


def _config(skeleton: Skeleton, module: str) -> object:
    return skeleton.model.get_submodule(module).config.to_dict()


def _exchanged(name: str, ours: str, theirs: str) -> str:
    """The name with ``theirs`` for ``ours`` at its beginning, where it begins so."""
    inside = name if not ours else name[len(ours) + 1 :] if name.startswith(f"{ours}.") else None
    if inside is None:
        return name
    return f"{theirs}.{inside}" if theirs else inside


def _shared_module(whole: Skeleton, part: Skeleton, names: Mapping[str, str]) -> tuple[str, str]:
    """``names`` gives the part's name of each tensor of the whole that both have."""
    ours = set(_models(part.model))
    best, most = WHOLE, 0
    for place in _models(whole.model):
        held = [name for name in whole.shapes if place and name.startswith(f"{place}.")]
        if len(held) <= most or not all(name in names for name in held):
            continue
        there = {names[name].removesuffix(name[len(place) + 1 :]).rstrip(".") for name in held}
        if len(there) == 1 and there <= ours:
            best, most = (place, there.pop()), len(held)
    return best
