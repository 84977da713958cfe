"""What cannot be added to a tokenizer, and why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.roles import FRAME_ROLES
from graftkit.checkpoint.tokenizer.special import further_tokens
from graftkit.checkpoint.tokenizer.vocabulary import object_of
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from graftkit.checkpoint.tokenizer.files import TokenizerFiles

_ROLE = re.compile(r"[a-z][a-z0-9_]*_token")


def check_additions(documents: Mapping[str, Any], files: TokenizerFiles, contents: Sequence[str]) -> None:
    """Raise InputRejected if a token exists, is empty or named twice, or would be loaded with another id."""
    seen: set[str] = set()
    for content in contents:
        shown = printable(content)
        if not content.strip():
            raise InputRejected(f"the new token {shown!r} is empty or nothing but whitespace")
        if content in files.ids:
            raise InputRejected(f"tokenizer.json: the token {shown!r} exists already, with id {files.ids[content]}")
        if content in seen:
            raise InputRejected(f"the new token {shown!r} is named twice")
        seen.add(content)
    if not contents:
        return
    check_dense(files)
    implied = list(dict.fromkeys(_implied(documents, files)))
    if list(contents[: len(implied)]) != implied:
        names = ", ".join(repr(printable(content)) for content in implied)
        raise InputRejected(
            f"tokenizer_config.json: names {names}, which tokenizer.json does not have; transformers adds it as id"
            f" {files.size} at each load, where a new token would stand: add {names} before the other new tokens"
        )


def check_not_one_piece(files: TokenizerFiles, contents: Iterable[str]) -> None:
    """Raise InputRejected if a plain token is a single old token already, in the vocabulary's own spelling.

    ``Cat`` is one where the normalizer lowers letters and the vocabulary has ``cat``; so is ``é``, which byte-level
    vocabularies spell ``Ã©``. Adding it would take all text away from the old token.
    """
    for content in contents:
        index = one_piece(files, content)
        if index is not None:
            raise InputRejected(
                f"tokenizer.json: the token {printable(content)!r} exists already: it is read as"
                f" {printable(files.token_of(index))!r}, id {index}"
            )


def one_piece(files: TokenizerFiles, content: str) -> int | None:
    """The id of the single piece of the vocabulary that ``content`` is read as; None where it is more, or unknown."""
    pieces = files.encode(content)
    unknown = files.document["model"].get("unk_token")
    return pieces[0] if len(pieces) == 1 and not _is_unknown(files, pieces[0], unknown) else None


def check_roles(files: TokenizerFiles, known: Mapping[str, int], roles: Mapping[str, str]) -> None:
    """Raise InputRejected if a role is no role, names no token, or is the one that the model itself holds."""
    for role, content in roles.items():
        shown = printable(role)
        if not _ROLE.fullmatch(role):
            raise InputRejected(f"roles: {shown!r} is not the name of a role, such as pad_token")
        if content not in known:
            raise InputRejected(f"roles: {shown}: the tokenizer has no token {printable(content)!r}")
        if role in FRAME_ROLES and any(map(str.isspace, content)):
            raise InputRejected(f"roles: {shown}: {printable(content)!r} has a space, which a template cannot name")
        if role == "unk_token" and files.special.get(role) != content:
            raise InputRejected(
                "roles: unk_token: is part of the tokenizer's model and cannot be given to another token"
            )


def _is_unknown(files: TokenizerFiles, index: int, unknown: object) -> bool:
    return index == files.document["model"].get("unk_id") or files.token_of(index) == unknown


def check_dense(files: TokenizerFiles) -> None:
    """Raise InputRejected if ids are not those that the tokenizers library gives: it numbers added tokens in order, without gaps."""
    if files.gaps:
        shown = ", ".join(map(str, files.gaps[:5])) + (", ..." if len(files.gaps) > 5 else "")
        raise InputRejected(
            f"tokenizer.json: no token has the ids {shown} below the largest, {files.size - 1}; the tokenizers library"
            " closes such gaps, and tokens behind one have other ids than the file says: name a token for each id first"
        )
    beyond = [entry.index for entry in files.added if entry.index >= files.model_size]
    if beyond != sorted(beyond):
        raise InputRejected(
            "tokenizer.json: added_tokens: is not in the order of the ids, and the tokenizers library numbers them in"
            " the order of the list: sort it by id first"
        )


def _implied(documents: Mapping[str, Any], files: TokenizerFiles) -> Iterator[str]:
    """Yield the tokens that tokenizer_config.json and its neighbours name and tokenizer.json lacks, in load order."""
    config = object_of(documents, "tokenizer_config.json")
    decoder = config.get("added_tokens_decoder")
    decoded: dict[int, str] = {}
    for index, value in decoder.items() if isinstance(decoder, dict) else ():
        content = value.get("content") if isinstance(value, dict) else None
        if not index.isdecimal() or not isinstance(content, str):
            raise InputRejected(
                f"tokenizer_config.json: added_tokens_decoder: {printable(index)!r} is no id of a token"
            )
        holder = files.token_of(int(index))
        if holder is not None and holder != content:
            raise InputRejected(
                f"tokenizer_config.json: added_tokens_decoder: id {index} is {printable(content)!r}, in"
                f" tokenizer.json it is {printable(holder)!r}"
            )
        decoded[int(index)] = content
    further = further_tokens(config, object_of(documents, "special_tokens_map.json"))
    for content in (*(decoded[index] for index in sorted(decoded)), *files.special.values(), *further):
        if content not in files.ids:
            yield content
