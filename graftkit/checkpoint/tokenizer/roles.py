"""Roles such as ``pad_token`` outside the tokenizer's own lists: config, generation_config and post-processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftkit.checkpoint.tokenizer.vocabulary import Json

#: Roles whose id transformers always reads from the config, and generation from generation_config.
CONFIG_ROLES = ("pad_token", "bos_token", "eos_token")
#: Roles that a post-processor puts around a text.
FRAME_ROLES = ("bos_token", "eos_token", "cls_token", "sep_token")


def with_role_ids(config: Mapping[str, Any], ids: Mapping[str, int], old: Mapping[str, int]) -> dict[str, Any]:
    """Return config.json with ``<role>_id`` set to ``ids``; ``old`` are the ids that the roles had.

    Set are the top level and ``text_config``, where transformers reads them, and every sub-config that names the same
    id as before. A sub-config with another id has a vocabulary of its own (an audio codec, say) and is left alone.
    """
    result = dict(config)
    for role, index in ids.items():
        key = f"{role}_id"
        before = {_first(value) for value in (config.get(key), old.get(role)) if value is not None}
        result = _set_below(result, key, index, before)
        if role in CONFIG_ROLES or key in config:
            result[key] = replace_id(config.get(key), index)
        text = result.get("text_config")
        if isinstance(text, dict) and (role in CONFIG_ROLES or key in text):
            given = config["text_config"].get(key)
            result["text_config"] = {**text, key: replace_id(given, index)}
    return result


def with_generation_ids(generation: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return generation_config.json with the ids of pad, bos and eos set; a list keeps its other ids behind the new ones."""
    set_to = {f"{role}_id": index for role, index in ids.items() if role in CONFIG_ROLES}
    return {**generation, **{key: replace_id(generation.get(key), index) for key, index in set_to.items()}}


def replace_id(value: Json, index: int) -> Json:
    """Return ``index`` in the form of ``value``: a list keeps its other ids behind the new one."""
    if isinstance(value, list):
        return [index, *(other for other in value if other != index)]
    return index


def renamed_frame(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return which token of a post-processor replaces which, when roles change from ``old`` to ``new``.

    A template names tokens, not roles. A token is renamed only if every role of :data:`FRAME_ROLES` that it played
    is now played by the same other token; RoBERTa's ``</s>``, for one, is eos and sep at once.
    """
    renamed = {}
    for content in {old[role] for role in FRAME_ROLES if role in old}:
        now = {new.get(role, content) for role in FRAME_ROLES if old.get(role) == content}
        if len(now) == 1 and now != {content}:
            renamed[content] = now.pop()
    return renamed


def with_frame(part: Json, renamed: Mapping[str, str], ids: Mapping[str, int]) -> Json:
    """Return a post-processor of tokenizer.json with tokens renamed, in templates and in ``sep`` and ``cls`` pairs."""
    if not isinstance(part, dict) or not renamed:
        return part
    result = dict(part)
    if isinstance(part.get("processors"), list):
        result["processors"] = [with_frame(inner, renamed, ids) for inner in part["processors"]]
    for key in ("sep", "cls"):
        pair = part.get(key)
        if isinstance(pair, list) and pair and pair[0] in renamed:
            result[key] = [renamed[pair[0]], ids[renamed[pair[0]]]]
    for key in ("single", "pair"):
        if isinstance(part.get(key), list):
            result[key] = [_renamed_piece(piece, renamed) for piece in part[key]]
    if isinstance(part.get("special_tokens"), dict):
        result["special_tokens"] = dict(_renamed_token(k, v, renamed, ids) for k, v in part["special_tokens"].items())
    return result


def frame_tokens(part: Json) -> set[str]:
    """Return the tokens that a post-processor of tokenizer.json puts around a text."""
    if not isinstance(part, dict):
        return set()
    inner = part.get("processors")
    found = set().union(*(frame_tokens(item) for item in inner)) if isinstance(inner, list) else set()
    found |= {part[key][0] for key in ("sep", "cls") if isinstance(part.get(key), list) and part[key]}
    special = part.get("special_tokens")
    return found | set(special if isinstance(special, dict) else ())


def with_padding(padding: Json, content: str, index: int) -> Json:
    """Return the ``padding`` section of tokenizer.json with another pad token, if there is such a section."""
    return {**padding, "pad_token": content, "pad_id": index} if isinstance(padding, dict) else padding


def _set_below(config: dict[str, Any], key: str, index: int, before: set[Any]) -> dict[str, Any]:
    result = dict(config)
    for name, inner in config.items():
        if isinstance(inner, dict):
            changed = _set_below(inner, key, index, before)
            if inner.get(key) is not None and _first(inner[key]) in before:
                changed[key] = replace_id(inner[key], index)
            result[name] = changed if changed != inner else inner
    return result


def _first(value: Json) -> Json:
    return value[0] if isinstance(value, list) and value else None if isinstance(value, list) else value


def _renamed_piece(piece: Json, renamed: Mapping[str, str]) -> Json:
    special = piece.get("SpecialToken") if isinstance(piece, dict) else None
    if not isinstance(special, dict) or special.get("id") not in renamed:
        return piece
    return {**piece, "SpecialToken": {**special, "id": renamed[special["id"]]}}


def _renamed_token(name: str, value: Json, renamed: Mapping[str, str], ids: Mapping[str, int]) -> tuple[str, Json]:
    if name not in renamed or not isinstance(value, dict):
        return name, value
    content = renamed[name]
    return content, {**value, "id": content, "ids": [ids[content]], "tokens": [content]}
