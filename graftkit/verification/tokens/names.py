"""A renamed token is the old one under another name: the same id wherever it stands, and nowhere named as before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.renamed_places import NAMING, in_templates, stands_out
from graftkit.errors import printable
from graftkit.verification.tokens.placement import PLACEMENTS, WORD_PLACEMENTS

if TYPE_CHECKING:
    from graftkit.checkpoint.tokenizer import Renamed
    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: JSON documents in which no name may stay behind.
DOCUMENTS = ("tokenizer.json", *NAMING, "added_tokens.json", "generation_config.json", "chat_template.json")

#: Parts of tokenizer.json that are about text, which may be the old name's.
ABOUT_TEXT = ("normalizer", "pre_tokenizer")


def check_renamed(before: LoadedTokenizer, after: LoadedTokenizer, renamed: Mapping[str, Renamed]) -> Iterator[str]:
    """Yield what is wrong with each renamed token, by its old name."""
    for old, now in renamed.items():
        index = before.ids.get(now.content)
        token = None if index is None else after.added.get(index)
        if token is not None and bool(token.special) != now.special:
            word = "special" if now.special else "plain"
            yield f"the renamed token {printable(now.content)!r} was to be {word}, and is not"
        if index is not None and index in before.added:
            yield from _other_ids(before, after, old, now.content, before.added[index])
    yield from _left_behind(after, {old: now.content for old, now in renamed.items() if stands_out(old)})


def _other_ids(before: LoadedTokenizer, after: LoadedTokenizer, old: str, new: str, flags: Any) -> Iterator[str]:
    """Yield the first text in which the token under its new name gives other ids than under its old one."""
    if flags.normalized:  # what is found then is another text, which may be longer, or several
        return
    places = WORD_PLACEMENTS if flags.single_word else PLACEMENTS
    was, now = (
        loaded.encode([place.replace("{}", name) for place in places]) for loaded, name in ((before, old), (after, new))
    )
    for place, ids, others in zip(places, was, now, strict=True):
        if ids != others and not before.loses(ids):
            shown = printable(place.replace("{}", new))
            yield f"{shown!r} does not give the ids that it gave with {printable(old)!r}: {ids} were, {others} are"
            return


def _left_behind(after: LoadedTokenizer, names: Mapping[str, str]) -> Iterator[str]:
    """Yield each document, with the place in it, that still has an old name."""
    if not names:
        return
    for document in DOCUMENTS:
        value = after.document(document)
        if document == "tokenizer.json" and isinstance(value, dict):
            value = {part: item for part, item in value.items() if part not in ABOUT_TEXT}
        for place, name in _named(value, names, ""):
            yield f"{document}: {place} still names {printable(name)!r}"
            break
    for name, text in after.templates():
        if text != in_templates(text, names, after.ids):
            yield f"{name}: the chat template still names {printable(next(old for old in names if old in str(text)))!r}"


def _named(value: Any, names: Mapping[str, str], place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if value in names:
            yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            below = f"{place}.{printable(key)}" if place else printable(key)
            if key in names:
                yield below, key
            yield from _named(item, names, below)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _named(item, names, f"{place}[{number}]")
