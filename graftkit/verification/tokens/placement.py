"""Each new token is read as its one id wherever it stands, and its id is written as the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftkit.errors import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: Where a token is tried: alone, inside a word, between words, doubled, between other scripts, whitespace, punctuation.
PLACEMENTS = ("{}", "one {} two", "({}).", "x{}y", "{}{}", "数{}字", "\n{}\t9", "é{}ж")
#: Those in which a token that must be a word of its own stands as one.
WORD_PLACEMENTS = PLACEMENTS[:3]


def check_new_tokens(after: LoadedTokenizer, new: Mapping[str, int], special: Collection[str]) -> Iterator[str]:
    """Yield a sentence for a new token that is not found in text, not written back, or not special as it has to be."""
    for content, index in new.items():
        yield from _check_flags(after, content, index, must_be_special=content in special)
    yield from _check_reading(after, new)
    for content, index in new.items():
        back = after.decode([index]).strip()
        if back not in (content.strip(), after.written_as(index).strip()):
            yield f"id {index} of the new token {printable(content)!r} is decoded as {printable(back)!r}"


def _check_flags(after: LoadedTokenizer, content: str, index: int, *, must_be_special: bool) -> Iterator[str]:
    shown = printable(content)
    token = after.added.get(index)
    if token is None:
        yield f"the new token {shown!r} is not among the added tokens"
        return
    if not must_be_special:
        return
    if not token.special:
        yield f"the new token {shown!r} is registered as plain, not as special"
    if content not in after.tokenizer.all_special_tokens:
        yield f"the new token {shown!r} is missing in all_special_tokens"
    if after.decode([index], skip_special=True).strip():
        yield f"the new token {shown!r} is written although special tokens are to be skipped"


def _check_reading(after: LoadedTokenizer, new: Mapping[str, int]) -> Iterator[str]:
    texts, wanted = [], []
    for content, index in new.items():
        token = after.added.get(index)
        places = WORD_PLACEMENTS if token is not None and token.single_word else PLACEMENTS
        for place in places:
            texts.append(place.replace("{}", content))
            wanted.append((content, index, place))
    reported: set[str] = set()
    for text, ids, (content, index, place) in zip(texts, after.encode(texts), wanted, strict=True):
        found = ids == [index] if place == "{}" else ids.count(index) >= place.count("{}")
        if found or content in reported or (place != "{}" and _is_covered(after, text, content, place)):
            continue
        reported.add(content)
        pieces = printable("|".join(after.tokenizer.convert_ids_to_tokens(ids)))
        shown, where = printable(content), printable(text)
        yield f"the new token {shown!r} (id {index}) is not read as one id in {where!r}: {pieces}"


def _is_covered(after: LoadedTokenizer, text: str, content: str, place: str) -> bool:
    """Tell whether another added token rightly takes the place: one that begins earlier, or there and is longer."""
    folded = text.casefold()
    start = place.index("{}")
    others = (str(token.content) for token in after.added.values())
    return any(
        _starts_before(folded, other.casefold(), start, len(content), content.casefold())
        for other in others
        if other != content
    )


def _starts_before(text: str, other: str, start: int, length: int, content: str) -> bool:
    begin: Any = text.find(other)
    while begin != -1 and begin <= start + length:
        longer = begin < start or (begin == start and len(other) > len(content))
        if longer and begin + len(other) > start:
            return True
        begin = text.find(other, begin + 1)
    return False
