"""The model of a tokenizer under other ids, without the pieces that have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.checkpoint.tokenizer.closure import merges_of
from graftkit.checkpoint.tokenizer.id_places import Move


def renumbered_model(model: Mapping[str, Any], move: Move) -> dict[str, Any]:
    """The ``model`` of a tokenizer.json with its pieces under other ids; merges stay where all of their pieces do, in their order."""
    vocab, result = model["vocab"], dict(model)
    if isinstance(vocab, list):
        result["vocab"] = [item for index, item in enumerate(vocab) if move(index) is not None]
        if isinstance(model.get("unk_id"), int):
            result["unk_id"] = move(model["unk_id"])
        return result
    result["vocab"] = kept = {token: place for token, index in vocab.items() if (place := move(index)) is not None}
    if model.get("merges"):
        result["merges"] = [
            merge
            for merge, ((left, right), made) in zip(model["merges"], merges_of(model), strict=True)
            if left in kept and right in kept and made in kept
        ]
    return result
