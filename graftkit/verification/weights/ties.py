"""Weights that were one and are two: equal still, so that no output shows it, until training moves them apart."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from graftkit.architecture.accounting import Structure, account
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.errors import InputRejected, printable


def lost_ties(old: Checkpoint, new: Checkpoint, meant: Collection[tuple[str, str]] = ()) -> Iterator[str]:
    """Yield a sentence for each pair of weights that ``old`` ties, and that ``new`` stores as two with equal values.

    What its class does not load ties nothing; ties ``(target, source)`` that were undone on purpose are ``meant``.

    Raises:
        InputRejected: the tensors of ``new`` are not those of its class.
    """
    if old.config == new.config and old.tensors.keys() == new.tensors.keys():
        return
    after = account(new)
    try:
        before = account(old)
    except InputRejected:
        return
    for target, origin in before.skeleton.tied.items():
        pair = None if (target, origin) in meant else _stored(after, target, origin)
        if pair is None or not _is_tied(old, before, target, origin) or _is_tied(new, after, target, origin):
            continue
        if equal_bytes(*(new.tensors[name] for name in pair)):
            one, other = (repr(printable(name)) for name in pair)
            yield (
                f"structure: {one} and {other} were tied and are two tensors now, equal still: training would move them apart;"
                " set tie_word_embeddings as in the source"
            )


def _stored(structure: Structure, target: str, origin: str) -> tuple[str, str] | None:
    """The names on disk of both sides, None where one is not stored."""
    one, other = (structure.memory.first_on_disk(name) for name in (target, origin))
    return None if one is None or other is None else (one, other)


def _is_tied(checkpoint: Checkpoint, structure: Structure, target: str, origin: str) -> bool:
    """Whether the loader ties them: the class does, and where both are stored their bytes are equal."""
    if target not in structure.skeleton.tied:
        return False
    pair = _stored(structure, target, origin)
    return pair is None or equal_bytes(*(checkpoint.tensors[name] for name in pair))
