"""Pieces put into every file of a tokenizer that lists them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from graftkit.checkpoint.tokenizer.files import TokenizerFiles, read_tokenizer
from graftkit.checkpoint.tokenizer.pieces import Pieces, entered, mapped, with_pieces
from graftkit.checkpoint.tokenizer.refusals import check_additions
from graftkit.checkpoint.tokenizer.vocabulary import AddedEntry
from graftkit.errors import InputRejected, few

#: Files of slow tokenizers that pieces can be put into; others, such as tokenizer.model, stay as they are.
EDITED = ("vocab.json", "merges.txt", "vocab.txt")


def add_pieces(
    documents: Mapping[str, Any], slow: Mapping[str, Any], pieces: Pieces
) -> tuple[dict[str, Any], dict[str, int], tuple[str, ...]]:
    """The files that change when ``pieces`` come behind a tokenizer's own, their ids, and what to know of it.

    ``slow`` are those of the files in :data:`EDITED` that there are.

    Raises:
        InputRejected: transformers would load the result with other ids than its files say, or an added token would be read
            where it is not written.

    """
    files = read_tokenizer(documents)
    ids = pieces.ids(files)
    check_additions(documents, files, list(ids))
    document = with_pieces(files, pieces)
    notes = tuple(_check_entered(files, read_tokenizer({"tokenizer.json": document})))
    return {"tokenizer.json": document, **dict(_slow_files(files, pieces, slow))}, ids, notes


def _check_entered(files: TokenizerFiles, after: TokenizerFiles) -> Iterator[str]:
    """Look whether the model would read added tokens that its vocabulary gets entries for, where they are not found before it."""
    new = entered(files)
    read = [entry for entry in files.added if entry.content in new and _is_read(after, entry)]
    plain = [entry.content for entry in read if not entry.special]
    if plain:
        raise InputRejected(
            f"tokenizer.json: added_tokens: {few(plain)}: the model would read it inside words, since its vocabulary needs an entry"
            " for each id below a new piece's; add such tokens behind learn_tokens"
        )
    if read:
        names = few([entry.content for entry in read])
        yield f"{names}: in the model's vocabulary now, and read where the normalizer makes it of other text"


def _is_read(after: TokenizerFiles, entry: AddedEntry) -> bool:
    """Whether text that holds the token can come to the model: it is found before, but for what only the normalizer makes."""
    escapes = entry.single_word or (after.document.get("normalizer") is not None and not entry.normalized)
    content = entry.content
    return (
        escapes and entry.index in after.pieces_of(content) and any(content in word for word in after.words_of(content))
    )


def _slow_files(files: TokenizerFiles, pieces: Pieces, slow: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each file with ``pieces`` in it; one that does not say what tokenizer.json says is left alone."""
    model = files.document["model"]
    vocab, merges = model["vocab"], _pairs(model.get("merges"))
    if not isinstance(vocab, dict):
        return
    if slow.get("vocab.json") == vocab:
        yield "vocab.json", mapped(files, pieces)
    if (text := slow.get("merges.txt")) is not None and _merges_of(text) == merges:
        yield "merges.txt", _with_lines(text, (" ".join(merge) for merge in pieces.merges))
    if (text := slow.get("vocab.txt")) is not None and text.split("\n") == [*_lines(vocab), ""]:
        yield "vocab.txt", _with_lines(text, [*entered(files), *(piece.content for piece in pieces.listed)])


def _pairs(merges: Sequence[Any] | None) -> list[tuple[str, ...]]:
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges or ()]


def _merges_of(text: str) -> list[tuple[str, ...]]:
    lines = text.split("\n")
    return [tuple(line.split(" ")) for line in lines[lines[0].startswith("#version") :] if line]


def _lines(vocab: Mapping[str, int]) -> list[str]:
    """The tokens in the order of their ids; a gap is a line that no file has."""
    tokens = {index: token for token, index in vocab.items()}
    return [tokens.get(index, "\n") for index in range(max(tokens, default=-1) + 1)]


def _with_lines(text: str, lines: Iterable[str]) -> str:
    return "".join([text, "" if text.endswith("\n") or not text else "\n", *(f"{line}\n" for line in lines)])
