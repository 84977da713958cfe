"""Trained values that lie beside an adapter and are no part of it: new embeddings, a vision tower, what else was not a LoRA."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path

from graftkit.checkpoint.adapter import PICKLE, WEIGHTS
from graftkit.checkpoint.file_kinds import holds_values
from graftkit.errors import InputRejected, RecipeError, few, printable


def left_beside(folder: Path, shown: str, leave: Sequence[str]) -> Iterator[str]:
    """Yield a note on the files of the adapter's ``folder`` with trained values that ``leave``, names and patterns, leaves behind.

    States of trainings are none of them.

    Raises:
        InputRejected: there are others; each is named.
        RecipeError: a name of ``leave`` fits none.
    """
    found = [path.name for path in folder.iterdir() if holds_values(path.name) and path.is_file()]
    beside = sorted(name for name in found if name not in (WEIGHTS, PICKLE))
    for pattern in leave:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in beside):
            there = f"there are {few(beside)}" if beside else "there are none"
            raise RecipeError(
                f"{printable(pattern)!r} fits no file with trained values beside the adapter; {there}", field="leave"
            )
    others = [name for name in beside if not any(fnmatch.fnmatchcase(name, pattern) for pattern in leave)]
    if others:
        hold, them = ("holds", "it") if len(others) == 1 else ("hold", "them")
        raise InputRejected(
            f"{shown}: {few(others)} {hold} trained values beside {WEIGHTS}, which would be missing in the output; put {them} into"
            f" the base or into the adapter first, or merge without {them}: leave: [{', '.join(map(printable, others))}]"
        )
    if beside:
        yield f"{few(beside)}: left behind as asked; trained values beside the adapter that are not in the output"
