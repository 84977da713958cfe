"""The tokenizer that lies beside an adapter: the one that it was trained with, where the output has the base's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import TOKENIZER, read_document
from graftkit.checkpoint.files import is_there
from graftkit.checkpoint.tokenizer import NO_TOKENIZER, TokenizerFiles, read_tokenizer
from graftkit.checkpoint.tokenizer.vocabulary import AddedEntry
from graftkit.errors import InputRejected, plural, printable

#: What tells which token has which id; the second stands alone beside a tokenizer that is not a fast one.
_FILES = (TOKENIZER, "added_tokens.json")
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")


def tokenizer_differences(folder: Path, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what the tokenizer in the adapter's ``folder`` has otherwise than the base's, and which operations would add it.

    Nothing is yielded where there is none, and where every token of it has the base's id.
    """
    try:
        theirs = read_beside(folder)
        if theirs is None:
            return
        ours = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    except InputRejected as error:
        yield f"the tokenizer beside the adapter was not compared with the base's: {error}"
        return
    yield from _other_ids(theirs, ours)
    lacking = [index for index, token in sorted(theirs.tokens.items()) if ours.id_of(token) is None]
    if lacking:
        it, them = ("token", "it") if len(lacking) == 1 else ("tokens", "them")
        yield (
            f"the adapter's tokenizer has {len(lacking):,} {it} that the base's lacks: {_named(lacking, theirs)};"
            f" the output keeps the base's tokenizer, which splits {them}"
        )
        yield _remedy(lacking, theirs, ours)


def read_beside(folder: Path) -> TokenizerFiles | None:
    """The tokenizer of the folder; of one that is not a fast one, the added tokens alone; None where there is neither.

    Raises:
        InputRejected: a file of it is malformed.
    """
    if not any(is_there(folder / name) for name in _FILES):
        return None
    found = {name: read_document(folder, name) for name in (*_FILES, *_BESIDE) if is_there(folder / name)}
    if TOKENIZER in found:
        return read_tokenizer(found)
    added = found["added_tokens.json"]
    ids = {token: index for token, index in added.items() if type(index) is int} if isinstance(added, dict) else {}
    tokens = {index: token for token, index in ids.items()}
    return TokenizerFiles(MappingProxyType(ids), MappingProxyType(tokens), 0, (), NO_TOKENIZER.special, found)


def _other_ids(theirs: TokenizerFiles, ours: TokenizerFiles) -> Iterator[str]:
    pairs = ((token, index, ours.id_of(token)) for token, index in theirs.ids.items())
    moved = [(token, index, here) for token, index, here in pairs if here not in (None, index)]
    if moved:
        first = ", ".join(f"{printable(token)!r} ({index}, here {here})" for token, index, here in moved[:4])
        more = ", …" if len(moved) > 4 else ""
        have = "has another id" if len(moved) == 1 else "have other ids"
        yield (
            f"{plural(len(moved), 'token')} {have} in the adapter's tokenizer than in the base's: {first}{more}; the adapter"
            " was trained with its own, and the output keeps the base's"
        )


def _named(indices: Sequence[int], files: TokenizerFiles) -> str:
    first = ", ".join(f"{printable(files.tokens[index])!r} ({index})" for index in indices[:4])
    return first + (", …" if len(indices) > 4 else "")


def _remedy(lacking: Sequence[int], theirs: TokenizerFiles, ours: TokenizerFiles) -> str:
    """The operations that give the base these tokens with the adapter's ids, or why none does."""
    entries = {entry.index: entry for entry in theirs.added}
    ids = f"ids {lacking[0]} to {lacking[-1]}" if len(lacking) > 1 else f"id {lacking[0]}"
    if lacking != list(range(ours.size, ours.size + len(lacking))):
        return (
            f"extend_vocab would count from {ours.size}, so it cannot give them the adapter's {ids}; put the adapter's tokenizer"
            " files into a copy of the base's folder, and take that as base_model"
        )
    if not entries.keys() >= set(lacking):
        return (
            f"they are no added tokens of a tokenizer.json, so extend_vocab cannot make them the same; put the adapter's"
            f" tokenizer files into a copy of the base's folder, and take that as base_model: {ids} are theirs then"
        )
    lines = ", ".join(
        json.dumps(one, ensure_ascii=False) for one in operations_that_add(entries[index] for index in lacking)
    )
    return f"for the adapter's {ids}, put before merge_adapter: {lines}"


def operations_that_add(entries: Iterable[AddedEntry]) -> list[dict[str, Any]]:
    """As few extend_vocab operations as give these tokens their ids: one counts plain tokens first, then special ones."""
    found: list[dict[str, Any]] = []
    for special, group in groupby(entries, lambda entry: entry.special):
        if not special or not found:
            found.append({"op": "extend_vocab"})
        found[-1]["special_tokens" if special else "tokens"] = [_token(entry) for entry in group]
    return found


def _token(entry: AddedEntry) -> str | dict[str, Any]:
    flags = {name: True for name in ("lstrip", "rstrip", "single_word") if getattr(entry, name)}
    if entry.normalized == entry.special:  # what a recipe takes where nothing is said is the other
        flags["normalized"] = entry.normalized
    return {"content": entry.content, **flags} if flags else entry.content
