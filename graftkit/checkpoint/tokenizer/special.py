"""Special tokens in tokenizer_config.json and special_tokens_map.json: named roles and the list of further ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from graftkit.checkpoint.tokenizer.vocabulary import AddedEntry, Json

#: Where the further special tokens stand: transformers 5's spelling, then transformers 4's.
LISTS = ("extra_special_tokens", "additional_special_tokens")


def content_of(value: Json) -> str | None:
    """Return the content of a token written as a string or as an object, or None if it is neither."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def named_roles(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    """Return the content of each named special token, as transformers 5 reads the two files.

    special_tokens_map.json counts only while tokenizer_config.json has no ``added_tokens_decoder``, and then wins.
    Source: ``PreTrainedTokenizerBase._from_pretrained``.
    """
    roles: dict[str, str] = {}
    for document in (config,) if "added_tokens_decoder" in config else (config, special_map):
        extra = document.get("extra_special_tokens")
        for source in (document, extra if isinstance(extra, dict) else {}):
            for key, value in source.items():
                content = content_of(value)
                if key.endswith("_token") and content is not None:
                    roles[key] = content
    return roles


def further_tokens(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> list[str]:
    """Return the special tokens without a role, as transformers 5 reads the two files: the first list that is not empty."""
    documents = (config,) if "added_tokens_decoder" in config else (config, special_map)
    for document in documents:
        for name in LISTS:
            value = document.get(name)
            if isinstance(value, list) and value:
                return [content for item in value if (content := content_of(item)) is not None]
    return []


def with_further_tokens(
    document: Mapping[str, Any], entries: Iterable[AddedEntry], *, inherited: list[str] | None = None
) -> dict[str, Any]:
    """Return ``document`` with ``entries`` appended to every list of special tokens that it has.

    A document without such a list gets one, if ``inherited`` is given, which starts with those tokens. It has the
    spelling that both transformers 4 and 5 read: a list under ``extra_special_tokens`` breaks transformers 4.
    """
    wanted = list(entries)
    result = dict(document)
    if not wanted:
        return result
    names = [name for name in LISTS if isinstance(document.get(name), list)]
    if inherited is not None and not any(document[name] for name in names):
        names = names[:1] or ["additional_special_tokens"]
        result[names[0]] = list(inherited)
    for name in names:
        known = {content_of(item) for item in result[name]}
        result[name] = [*result[name], *(_in_form_of_others(result[name], e) for e in wanted if e.content not in known)]
    return result


def with_roles(document: Mapping[str, Any], roles: Mapping[str, AddedEntry]) -> dict[str, Any]:
    """Return ``document`` with the named special tokens set, each as a string or an object as the document does."""
    result = dict(document)
    for role, entry in roles.items():
        extra = result.get("extra_special_tokens")
        if isinstance(extra, dict) and role in extra:
            result["extra_special_tokens"] = {**extra, role: _in_form_of(extra[role], entry)}
        else:
            others = [value for key, value in document.items() if key.endswith("_token")]
            result[role] = (
                _in_form_of(result[role], entry) if result.get(role) is not None else _in_form_of_others(others, entry)
            )
    return result


def _in_form_of_others(neighbours: Iterable[Json], entry: AddedEntry) -> Json:
    model = next((item for item in neighbours if isinstance(item, dict) and "content" in item), None)
    return _in_form_of(model, entry)


def _in_form_of(model: Json, entry: AddedEntry) -> Json:
    if not isinstance(model, dict):
        return entry.content
    values = {"__type": model.get("__type"), **entry.for_role(), "special": entry.special}
    return {key: value for key, value in values.items() if key in model or key in entry.for_role()}
