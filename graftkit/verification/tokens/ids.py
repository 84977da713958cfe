"""Where ids were numbered anew, every place that names a token by its id still names that token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.id_places import BY_KEY, BY_TOKEN, DOCUMENTS, ENTRIES, IdPlace, id_places
from graftkit.errors import printable

if TYPE_CHECKING:
    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: Lists of tokens to which others may have come; which id each has is looked at where the tokenizer is loaded.
LISTS_OF_TOKENS = (ENTRIES, BY_KEY, BY_TOKEN)

Places = Mapping[tuple[str, tuple[str | int, ...]], IdPlace]


def check_named_ids(before: LoadedTokenizer, after: LoadedTokenizer) -> Iterator[str]:
    """Yield the places of documents that name other tokens by their ids than they did, ids of changed roles left out."""
    if before.moved is None:
        return
    given = {index for one in (before, after) for index in _of_changed_roles(one, before, after)}
    old, new = _places(before, before.moved.result), _places(after, before.moved.result)
    for key, place in old.items():
        now = new.get(key)
        if now is None or place.value == now.value or given & {*place.ids, *now.ids}:
            continue
        wrong = sorted({*place.ids} ^ {*now.ids}) or sorted({*now.ids})
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        token = after.tokens.get(wrong[0])
        shown = f"id {wrong[0]}" if token is None else f"{printable(token)!r} (id {wrong[0]})"
        yield f"{place}: {shown}{more} is not what it names under the new ids: {_short(now.value)}, not {_short(place.value)}"


def _of_changed_roles(loaded: LoadedTokenizer, before: LoadedTokenizer, after: LoadedTokenizer) -> Iterator[int]:
    for role, content in loaded.roles.items():
        if before.roles.get(role) != after.roles.get(role) and content in loaded.ids:
            yield loaded.ids[content]


def _places(loaded: LoadedTokenizer, rows: int) -> Places:
    documents: dict[str, Any] = {name: loaded.document(name) for name in DOCUMENTS}
    found = id_places(documents, rows)
    return {(place.document, place.path): place for place in found if place.form not in LISTS_OF_TOKENS}


def _short(value: object) -> str:
    text = printable(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
