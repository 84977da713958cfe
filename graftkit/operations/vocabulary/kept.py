"""Which ids stay when a vocabulary is trimmed, each by the first reason that holds it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from graftkit.architecture.token_ids import named_ids
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.examples import read_texts
from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.checkpoint.tokenizer.bounds import tokenizers_faults
from graftkit.checkpoint.tokenizer.closure import closed
from graftkit.checkpoint.tokenizer.id_places import IdPlace
from graftkit.checkpoint.tokenizer.template_notes import templates
from graftkit.errors import RecipeError, plural, printable
from graftkit.recipe.trim_vocab import KeptTokens
from graftkit.recipe_file.wording import did_you_mean, shown
from graftkit.running.texts import load_tokenizer, write_tokenizer

#: Texts that are encoded at a time.
WINDOW = 512

#: Of so many texts one is held out of a second count, which tells how texts would fare that nobody counted.
HELD_OUT = 10

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class Kept:
    """The ids that stay, ascending; ``others`` are those that would stay by all texts but every tenth, None without so many.

    ``reasons`` counts ids by why they stay, ``texts`` and ``tokens`` what was counted. ``encode`` splits texts as the tokenizer that a
    user loads.
    """

    ids: tuple[int, ...]
    others: frozenset[int] | None
    reasons: Mapping[str, int]
    texts: int
    tokens: int
    encode: Encode


@dataclass(slots=True)
class _Counts:
    every: Counter[int] = field(default_factory=Counter)
    others: Counter[int] = field(default_factory=Counter)
    texts: int = 0


def kept_ids(spec: KeptTokens, checkpoint: Checkpoint, tokenizer: TokenizerFiles, rows: int) -> Kept:
    """Find the ids that stay of a table with ``rows`` rows.

    Raises:
        RecipeError: a listed token is not there, the texts cannot be read, or every token stays.
    """
    listed = _listed(spec, tokenizer)
    encode = loaded_encoder(checkpoint)
    counts = _count(spec, encode)
    used = {index for index, count in counts.every.items() if count >= spec.min_count}
    named = dict(named_ids(checkpoint.documents, rows))
    added = set(_added(spec, checkpoint, tokenizer, named, used))
    groups = {"of the texts": used, "listed": listed, "special or added": added, "named by a document": set(named)}
    besides = listed | added | set(named)
    ids = closed(tokenizer, used | besides)
    if not set(tokenizer.tokens) - ids:
        raise RecipeError(
            f"leaves nothing to trim: each of the tokenizer's {len(tokenizer.tokens):,} tokens stays",
            field="keep.texts" if spec.texts else "keep",
        )
    rest = {index for index, count in counts.others.items() if count >= spec.min_count}
    others = closed(tokenizer, rest | besides) if counts.texts >= HELD_OUT else None
    groups["needed by these"] = set(ids)
    return Kept(
        tuple(sorted(ids)), others, dict(_reasons(groups)), counts.texts, counts.every.total(), encode
    )  # fmt: skip


def loaded_encoder(checkpoint: Checkpoint) -> Encode:
    """What splits texts as the tokenizer does that transformers loads from the checkpoint's documents."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(checkpoint, Path(folder))
        backend: Any = load_tokenizer(Path(folder)).backend_tokenizer
    backend.no_padding()
    backend.no_truncation()

    def encode(texts: list[str]) -> list[list[int]]:
        with tokenizers_faults("tokenizer files"):
            return [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]

    return encode


def _count(spec: KeptTokens, encode: Encode) -> _Counts:
    """How often each id stands in the texts, in all of them and in all but every tenth."""
    counts = _Counts()
    if spec.texts is None:
        return counts
    try:
        stream = read_texts(Path(spec.texts))
        while window := list(islice(stream, WINDOW)):
            for ids in encode(window):
                counts.every.update(ids)
                if counts.texts % HELD_OUT != HELD_OUT - 1:
                    counts.others.update(ids)
                counts.texts += 1
    except RecipeError as error:
        raise RecipeError(str(error), field="keep.texts") from error
    if not counts.texts:
        raise RecipeError(f"{printable(spec.texts)}: holds no text", field="keep.texts")
    return counts


def _listed(spec: KeptTokens, tokenizer: TokenizerFiles) -> set[int]:
    lost = [(place, token) for place, token in enumerate(spec.tokens) if tokenizer.id_of(token) is None]
    if lost:
        near = {token: did_you_mean(token, tokenizer.ids) for _, token in lost}
        raise RecipeError(
            [
                f"the tokenizer has no token {shown(printable(token))}"
                + (f"; did you mean {shown(printable(close))}?" if (close := near[token]) else "")
                for _, token in lost
            ],
            field=[f"keep.tokens.{place}" for place, _ in lost],
        )
    return {tokenizer.ids[token] for token in spec.tokens}


def _added(
    spec: KeptTokens, checkpoint: Checkpoint, tokenizer: TokenizerFiles, named: Mapping[int, IdPlace], used: set[int]
) -> Iterator[int]:
    """The special and other added tokens that stay."""
    yield from (tokenizer.ids[token] for token in tokenizer.special.values() if token in tokenizer.ids)
    texts = templates(checkpoint.documents).values()
    for entry in tokenizer.added:
        needed = entry.index in named or entry.index in used or any(entry.content in text for text in texts)
        if spec.special == "all" or needed:
            yield entry.index


def _reasons(groups: Mapping[str, Iterable[int]]) -> Iterator[tuple[str, int]]:
    """Yield each reason with how many ids it is the first for."""
    seen: set[int] = set()
    for reason, ids in groups.items():
        yield reason, len(set(ids) - seen)
        seen |= set(ids)


def kept_note(kept: Kept, tokens: int) -> str:
    """How many tokens stay, and why."""
    parts = ", ".join(f"{count:,} {reason}" for reason, count in kept.reasons.items() if count)
    return f"{len(kept.ids):,} of {plural(tokens, 'token')} stay: {parts}"
