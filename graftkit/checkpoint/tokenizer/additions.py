"""Adding tokens to tokenizer files, and giving roles to tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.files import TokenizerFiles, read_tokenizer
from graftkit.checkpoint.tokenizer.refusals import check_additions, check_not_one_piece, check_roles
from graftkit.checkpoint.tokenizer.roles import (
    renamed_frame,
    with_frame,
    with_generation_ids,
    with_padding,
    with_role_ids,
)
from graftkit.checkpoint.tokenizer.special import further_tokens, with_further_tokens, with_roles
from graftkit.checkpoint.tokenizer.trial import Trial
from graftkit.checkpoint.tokenizer.vocabulary import AddedEntry, object_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to add, with the flags of ``tokenizers.AddedToken``.

    ``normalized`` None means False for a special token; for a plain one it means True, as in transformers, unless the
    tokenizer's normalizer would keep the token from being found inside text.
    """

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool | None = None


def add_tokens(
    documents: Mapping[str, Any], new: Sequence[NewToken], roles: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the documents that change when ``new`` is added and ``roles`` are given, and the id of each new token.

    Ids are size, size + 1, ... in the order given. ``roles`` maps names such as ``pad_token`` to tokens, old or new. A
    token that a role displaces stays special. Tokens that a post-processor puts around a text follow their role if
    they play no other (see :func:`graftkit.checkpoint.tokenizer.roles.renamed_frame`).

    Raises:
        InputRejected: a token exists already, a role names no token, or transformers would load the result with other
            ids than its files say, or could not find or decode a new token.

    """
    files = read_tokenizer(documents)
    check_additions(documents, files, [token.content for token in new])
    trial = Trial.build(files.document)
    entries = [_entry(token, files.size + place, trial) for place, token in enumerate(new)]
    check_not_one_piece(files, [token.content for token in new if not token.special and token.normalized is not False])
    trial.check(files.added, entries)
    ids = {entry.content: entry.index for entry in entries}
    known = {**files.ids, **ids}
    check_roles(files, known, roles)
    by_content = {entry.content: entry for entry in (*files.added, *entries)}
    holders = {
        role: replace(by_content.get(content, AddedEntry(known[content], content, special=True)), special=True)
        for role, content in roles.items()
    }
    registered = list({entry.content: entry for entry in (*entries, *holders.values())}.values())
    result = {
        "tokenizer.json": _tokenizer(files, registered, roles, known),
        **_tokenizer_config(documents, files, registered, holders),
        **_added_tokens(documents, entries),
        **_configs(documents, files, {role: entry.index for role, entry in holders.items()}),
    }
    return {name: value for name, value in result.items() if value != documents.get(name)}, ids


def _entry(token: NewToken, index: int, trial: Trial) -> AddedEntry:
    normalized = token.normalized
    if normalized is None:
        normalized = not token.special and trial.finds_normalized(token.content)
    return AddedEntry(
        index, token.content, token.special, token.lstrip, token.rstrip, token.single_word, normalized=normalized
    )


def _tokenizer(
    files: TokenizerFiles, registered: Iterable[AddedEntry], roles: Mapping[str, str], known: Mapping[str, int]
) -> Mapping[str, Any]:
    renamed = renamed_frame(files.special, {**files.special, **roles})
    changes: dict[str, Any] = {"added_tokens": _added_list(files, registered)}
    if renamed:
        changes["post_processor"] = with_frame(files.document.get("post_processor"), renamed, known)
    if "pad_token" in roles:
        content = roles["pad_token"]
        changes["padding"] = with_padding(files.document.get("padding"), content, known[content])
    current = files.document
    if all(current.get(key) == value for key, value in changes.items()):
        return current
    return {**current, **changes}


def _added_list(files: TokenizerFiles, registered: Iterable[AddedEntry]) -> list[dict[str, Any]]:
    """Return ``added_tokens`` with entries added or replaced, by id: the library gives ids in the order of the list."""
    place = {entry.content: index for index, entry in enumerate(files.added)}
    result = list(files.document.get("added_tokens") or [])
    for entry in registered:
        if entry.content not in place:
            result.append(entry.for_tokenizer())
        elif files.added[place[entry.content]] != entry:
            result[place[entry.content]] = entry.for_tokenizer()
    was_sorted = all(a.index < b.index for a, b in zip(files.added, files.added[1:], strict=False))
    return sorted(result, key=lambda item: item["id"]) if was_sorted else result


def _tokenizer_config(
    documents: Mapping[str, Any],
    files: TokenizerFiles,
    registered: Sequence[AddedEntry],
    holders: Mapping[str, AddedEntry],
) -> dict[str, Any]:
    config = object_of(documents, "tokenizer_config.json")
    special_map = object_of(documents, "special_tokens_map.json")
    further = _unnamed_special(files, registered, holders)
    result = {}
    if "tokenizer_config.json" in documents or "special_tokens_map.json" not in documents:
        changed = with_further_tokens(config, further, inherited=further_tokens(config, special_map))
        if isinstance(config.get("added_tokens_decoder"), dict):
            decoder = {**config["added_tokens_decoder"], **{str(e.index): e.for_config() for e in registered}}
            changed["added_tokens_decoder"] = decoder
        result["tokenizer_config.json"] = with_roles(changed, holders)
    if "special_tokens_map.json" in documents:
        alone = "tokenizer_config.json" not in documents
        changed = with_further_tokens(special_map, further, inherited=[] if alone else None)
        result["special_tokens_map.json"] = with_roles(changed, holders)
    return {name: value for name, value in result.items() if value or name in documents}


def _unnamed_special(
    files: TokenizerFiles, registered: Iterable[AddedEntry], holders: Mapping[str, AddedEntry]
) -> list[AddedEntry]:
    """Return the special tokens that no role names: the new ones, and those that a role displaces."""
    roles = {**files.special, **{role: entry.content for role, entry in holders.items()}}
    named = set(roles.values())
    added = {entry.content: entry for entry in files.added}
    displaced = [
        replace(added.get(content, AddedEntry(files.ids[content], content, special=True)), special=True)
        for content in dict.fromkeys(files.special[role] for role in holders if role in files.special)
        if content in files.ids
    ]
    return [entry for entry in (*displaced, *registered) if entry.special and entry.content not in named]


def _added_tokens(documents: Mapping[str, Any], entries: Iterable[AddedEntry]) -> dict[str, Any]:
    if "added_tokens.json" not in documents:
        return {}
    known = object_of(documents, "added_tokens.json")
    return {"added_tokens.json": {**known, **{entry.content: entry.index for entry in entries}}}


def _configs(documents: Mapping[str, Any], files: TokenizerFiles, ids: Mapping[str, int]) -> dict[str, Any]:
    if not ids:
        return {}
    old = {role: files.ids[content] for role, content in files.special.items() if content in files.ids}
    result = {}
    if "config.json" in documents:
        result["config.json"] = with_role_ids(object_of(documents, "config.json"), ids, old)
    if "generation_config.json" in documents:
        result["generation_config.json"] = with_generation_ids(object_of(documents, "generation_config.json"), ids)
    return result
