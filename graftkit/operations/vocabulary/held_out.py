"""How texts fare that a vocabulary was not trimmed for: those held out of the count, read by a tokenizer trimmed without them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.token_ids import renumbered
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.examples import read_texts
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.checkpoint.tokenizer.id_places import TOKENIZER
from graftkit.operations.vocabulary.kept import HELD_OUT, WINDOW, Kept, loaded_encoder
from graftkit.verification.tokens.trimmed_texts import HeldOut

#: Texts that are measured, at most.
MOST_TEXTS = 5_000


def measure_held_out(checkpoint: Checkpoint, kept: Kept, path: Path, rows: int) -> HeldOut | None:
    """Every tenth text by the old tokenizer, and by one that was trimmed by the other texts; None where there are too few."""
    if kept.others is None:
        return None
    ids = IndexMap.of_kept(rows, sorted(kept.others))
    trimmed = checkpoint.with_documents(renumbered(checkpoint.documents, ids))
    encode, move = loaded_encoder(trimmed), dict(zip(ids.kept, ids.places, strict=True))
    files = read_tokenizer({TOKENIZER: trimmed.documents[TOKENIZER]})
    unknown = _unknown(trimmed)
    texts = changed = tokens = lost = 0
    stream = islice(_held_out(path), MOST_TEXTS)
    while window := list(islice(stream, WINDOW)):
        for old, new in zip(kept.encode(window), encode(window), strict=True):
            texts, tokens = texts + 1, tokens + len(new)
            changed += [move.get(index) for index in old] != new
            lost += sum(files.tokens.get(index) in unknown for index in new)
    return HeldOut(texts, changed, tokens, lost)


def _held_out(path: Path) -> Iterator[str]:
    return (text for place, text in enumerate(read_texts(path)) if place % HELD_OUT == HELD_OUT - 1)


def _unknown(checkpoint: Checkpoint) -> set[str | None]:
    tokenizer = read_tokenizer(checkpoint.documents)
    model = tokenizer.document["model"]
    return {model.get("unk_token"), tokenizer.special.get("unk_token"), tokenizer.tokens.get(model.get("unk_id"))} - {
        None
    }
