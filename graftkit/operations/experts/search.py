"""The sparse class of a dense one, found by trying: its config, how each of its tensors is made, and which must be zero."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from graftkit.architecture.blocks.trace import why_it_does_not_run
from graftkit.architecture.saved_names import saved_tensors
from graftkit.architecture.skeleton import Skeleton, build_config, build_skeleton, one_line
from graftkit.architecture.widths.growth import kind
from graftkit.architecture.widths.miniature import miniature
from graftkit.errors import InputRejected
from graftkit.operations.experts.reach import with_short_reach
from graftkit.operations.experts.sources import New, Shape, Way, copies, not_there, of_kinds
from graftkit.operations.experts.sparse_config import (
    Fields,
    Unfit,
    check_rest,
    check_that_rest_is_there,
    dropped_fields,
    find_fields,
    sparse_document,
)

#: Combinations of copies that are tried.
MOST_TRIALS = 64

Counts = tuple[int, int]
Role = Literal["expert", "router", "beside"]


@dataclass(frozen=True, slots=True)
class Upcycling:
    """A sparse class that does what the dense one does.

    ``config`` is its config.json, ``own`` gives by name on disk the shape of each tensor that the dense class has not, ``ways`` by
    kind how it is made. ``dropped`` are fields of the dense config that it does not know.
    """

    config: Mapping[str, Any]
    skeleton: Skeleton
    fields: Fields
    own: Mapping[str, Shape]
    ways: Mapping[str, Way]
    dropped: tuple[str, ...]


class Miniature:
    """The dense class made small, and the experiment on it, which every sparse class is tried in.

    Raises:
        InputRejected: a small one does not run.
    """

    def __init__(self, config: Mapping[str, Any], dense: Skeleton) -> None:
        small = miniature(config, dense, ())
        try:
            self.config, self.skeleton, self.trial = with_short_reach(small, build_skeleton(small, dense.architecture))
        except Exception as error:  # model classes and their forwards raise whatever they like
            raise InputRejected(
                f"{dense.architecture}: nothing can be tried on a small model: {one_line(error)}"
            ) from error


def find_upcycling(
    config: Mapping[str, Any], dense: Skeleton, small: Miniature, architecture: str, counts: Counts
) -> Upcycling:
    """Find how the sparse class ``architecture`` does what the dense one does, with so many experts, and so many for each token.

    Raises:
        Unfit: it does not, with nothing that was tried; the message says what stands in the way.
        InputRejected: the class cannot be built.
    """
    check_that_rest_is_there(config, dense, architecture)
    fields = find_fields(config, dense, architecture)
    small_fields = find_fields(small.config, small.skeleton, architecture)
    document = sparse_document(config, architecture, fields.values(*counts))
    sparse = build_skeleton(document)
    check_rest(dense, sparse)
    why = why_it_does_not_run(sparse)
    if why and why.partition(":")[0] != _why_its_own_counts_do_not_run(config, architecture).partition(":")[0]:
        raise Unfit(f"it does not run with {counts[0]} experts and {counts[1]} for each token: {why}")
    own = own_tensors(dense, sparse)
    shapes = of_kinds(own)
    if missing := {kind(name) for name in own} - shapes.keys():
        raise Unfit(f"its {min(missing)} are of several shapes")
    missing_here = {name: shape for name, shape in dense.shapes.items() if name not in sparse.shapes}
    options = _options(shapes, of_kinds(missing_here), _roles(small, architecture, small_fields, counts), counts[0])
    flags, ways = _search(small, architecture, small_fields, options, counts)
    if one := not_there(ways, own, dense.shapes):
        raise Unfit(f"its tensors would be made of {one}, which the dense class has not")
    found = replace(fields, flags=flags)
    document = sparse_document(config, architecture, found.values(*counts))
    return Upcycling(document, build_skeleton(document), found, own, ways, dropped_fields(config, architecture))


def _why_its_own_counts_do_not_run(config: Mapping[str, Any], architecture: str) -> str:
    """What the class says with as many experts as it has by default: the same where it does not run without values at all."""
    return why_it_does_not_run(build_skeleton(sparse_document(config, architecture, {})))


def own_tensors(dense: Skeleton, sparse: Skeleton) -> dict[str, Shape]:
    """Name on disk, as `save_pretrained` has it, -> shape of what the sparse class alone has, in the order of the class."""
    places = {name: place for place, name in enumerate(sparse.shapes)}
    saved = saved_tensors(sparse.model).items()
    own = [(disk, held) for disk, held in saved if not all(name in dense.shapes for name in held.parameters)]
    return {disk: held.shape for disk, held in sorted(own, key=lambda item: places[item[1].parameters[0]])}


def _roles(small: Miniature, architecture: str, fields: Fields, counts: Counts) -> dict[str, Role]:
    """What each kind is, by what twice as many experts change: more tensors or a longer stack, another shape, or nothing."""
    held = []
    for count in (counts[0], 2 * counts[0]):
        document = sparse_document(small.config, architecture, fields.values(count, counts[1]))
        held.append(own_tensors(small.skeleton, build_skeleton(document)))
    numbers, shapes = [Counter(map(kind, own)) for own in held], [of_kinds(own) for own in held]
    found: dict[str, Role] = {}
    for name, shape in shapes[0].items():
        other = shapes[1].get(name, shape)
        more = numbers[1][name] > numbers[0][name] or (len(shape) == 3 and other[0] > shape[0])
        found[name] = "expert" if more else "router" if other != shape else "beside"
    return found


def _options(
    shapes: Mapping[str, Shape], dense: Mapping[str, Shape], roles: Mapping[str, Role], num_experts: int
) -> dict[str, list[Way]]:
    """By kind the ways in which it may be made, the kinds in the order of the class.

    Raises:
        Unfit: a kind of experts' tensors has none.
    """
    found: dict[str, list[Way]] = {}
    for name, shape in shapes.items():
        ways: list[Way] = list(copies(shape, dense, num_experts))
        role = roles.get(name, "beside")
        if role == "expert" and not ways:
            raise Unfit(f"no matrix of the dense class has the shape of its {name}, {list(shape)}")
        if role == "router":
            found[name] = [New("router" if len(shape) == 2 else "class")]
        else:
            found[name] = ways if role == "expert" else [New("class"), New("zero")]
    return found


def _search(
    small: Miniature, architecture: str, fields: Fields, options: Mapping[str, list[Way]], counts: Counts
) -> tuple[Mapping[str, bool], dict[str, Way]]:
    """The flags and the ways with which outputs are the same; no flag, and nothing zero, where that does.

    Where each token is sent to all experts their weights add up to one without a flag in most classes, so that the ways are found by
    themselves, and then the flag.

    Raises:
        Unfit: none are.
    """
    flags = list(_flags(small, architecture, fields, counts))
    alone = _first(small, architecture, fields, _combinations(options), (counts[0], counts[0]))
    for each in flags:
        tried = _combinations(options) if alone is None else [alone]
        if (ways := _first(small, architecture, replace(fields, flags=each), tried, counts)) is not None:
            return each, ways
    if alone is not None:
        raise Unfit(
            "it multiplies outputs by the sum of the probabilities of the chosen experts, and has no field that renormalises them"
        )
    raise Unfit("a small one gives other outputs than the dense class with every copy that was tried")


def _flags(small: Miniature, architecture: str, fields: Fields, counts: Counts) -> Iterator[dict[str, bool]]:
    """None, then each field of its own that is true or false, as the other."""
    yield {}
    own = build_config(small.config).to_dict()
    document = sparse_document(small.config, architecture, fields.values(*counts))
    for name, value in build_config(document).to_dict().items():
        if name not in own and type(value) is bool:
            yield {name: not value}


def _first(
    small: Miniature, architecture: str, fields: Fields, tried: Iterable[dict[str, Way]], counts: Counts
) -> dict[str, Way] | None:
    """The first of the ways with which outputs are the same; None where a flag gives the class other tensors."""
    try:
        sparse = build_skeleton(sparse_document(small.config, architecture, fields.values(*counts)))
    except InputRejected:
        return None
    own = own_tensors(small.skeleton, sparse)
    for ways in itertools.islice(tried, MOST_TRIALS):
        if not {kind(name) for name in own} <= ways.keys():
            return None
        if not_there(ways, own, small.skeleton.shapes):
            continue
        of_names = {name: ways[kind(name)] for name in own}
        if small.trial.distance(sparse, own, of_names, counts[0]) <= small.trial.threshold:
            return ways
    return None


def _combinations(options: Mapping[str, list[Way]]) -> Iterator[dict[str, Way]]:
    """Every choice of copies; with each nothing is zero first, and then one kind, the last of the class first."""
    zeros = [name for name, ways in options.items() if New("zero") in ways]
    copied = {name: [way for way in ways if way != New("zero")] for name, ways in options.items()}
    for chosen in itertools.product(*copied.values()):
        ways = dict(zip(copied, chosen, strict=True))
        yield ways
        yield from ({**ways, name: New("zero")} for name in reversed(zeros))
