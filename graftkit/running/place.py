"""Where a checkpoint is: in a folder, or in memory with its documents in a folder, or opened while its weights are on the hub."""

from __future__ import annotations

from pathlib import Path

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.running.live.model import LiveModel

Place = Path | LiveModel | Checkpoint


def folder_of(place: Place) -> Path:
    """The folder of the documents: config, tokenizer and what lies beside them."""
    return place if isinstance(place, Path) else place.directory


def open_place(place: Place) -> Checkpoint:
    """The checkpoint as a value.

    Raises:
        InputRejected: a folder cannot be opened.
    """
    if isinstance(place, Checkpoint):
        return place
    return Checkpoint.open(str(place)) if isinstance(place, Path) else place.checkpoint
