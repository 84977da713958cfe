"""Where tokens are named in the documents of a checkpoint, and the same documents with other names there.

Every function takes ``names``, old name to new, and returns a new value; ids are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from graftkit.checkpoint.tokenizer.chat_template import COPIES
from graftkit.checkpoint.tokenizer.roles import with_frame
from graftkit.checkpoint.tokenizer.special import LISTS, content_of
from graftkit.checkpoint.tokenizer.vocabulary import Json

#: Documents whose values under ``..._token`` and ``..._tokens`` are tokens by name.
NAMING = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
)

TEMPLATE = "chat_template.jinja"

#: Where tokenizer_config.json has the added tokens by id.
DECODER = "added_tokens_decoder"


def stands_out(name: str) -> bool:
    """Whether a name cannot be a word of ordinary text, so that text which holds it means the token."""
    return not name.replace("_", "").isalnum()


def in_template(text: str, names: Mapping[str, str], others: Iterable[str]) -> str:
    """A chat template with the names that stand out replaced, but for where they are part of a longer token of ``others``."""
    return in_text(text, {old: new for old, new in names.items() if stands_out(old)}, others)


def in_text(text: str, names: Mapping[str, str], others: Iterable[str]) -> str:
    """A text with names replaced, but for where they are part of a longer token of ``others``."""
    wanted = {old: new for old, new in names.items() if old in text}
    if not wanted:
        return text
    longer = {other for other in others if other not in wanted and any(old in other for old in wanted)}
    ordered = sorted({*wanted, *longer}, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, ordered)), lambda found: wanted.get(found[0], found[0]), text)


def in_templates(template: Json, names: Mapping[str, str], others: Iterable[str]) -> Json:
    """The same of a template in any of its forms: a text, named texts, or a list of objects with a name and a text."""
    if isinstance(template, str):
        return in_template(template, names, others)
    if isinstance(template, dict):
        return {key: item if key == "name" else in_templates(item, names, others) for key, item in template.items()}
    return [in_templates(item, names, others) for item in template] if isinstance(template, list) else template


def in_tokenizer(document: Mapping[str, Any], names: Mapping[str, str], ids: Mapping[str, int]) -> dict[str, Any]:
    """tokenizer.json with other names in its model, post-processor, padding and decoder; ``ids`` are those of the new names.

    ``added_tokens`` stays as it is.
    """
    result = {**document, "model": _model(document["model"], names)}
    if isinstance(document.get("post_processor"), dict):
        result["post_processor"] = with_frame(document["post_processor"], names, ids)
    if isinstance(document.get("decoder"), dict):
        result["decoder"] = named_values(document["decoder"], names)
    padding = document.get("padding")
    if isinstance(padding, dict) and padding.get("pad_token") in names:
        result["padding"] = {**padding, "pad_token": names[padding["pad_token"]]}
    return result


def _model(model: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    result, vocab = dict(model), model["vocab"]
    if isinstance(vocab, dict):
        result["vocab"] = {names.get(token, token): index for token, index in vocab.items()}
    else:
        result["vocab"] = [
            [names[item[0]], *item[1:]] if isinstance(item, list) and item[0] in names else item for item in vocab
        ]
    if model.get("unk_token") in names:
        result["unk_token"] = names[model["unk_token"]]
    return result


def named_values(value: Json, names: Mapping[str, str], *, inside: bool = False) -> Json:
    """A document with other names wherever a key says that its value is a token: ``..._token``, ``..._tokens``.

    ``inside`` says that the value stands under such a key, as a text, an object with a ``content``, or a list or mapping of these.
    """
    if isinstance(value, str):
        return names.get(value, value) if inside else value
    if isinstance(value, list):
        return [named_values(item, names, inside=inside) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: item
        if key == "chat_template"
        else named_values(item, names, inside=inside or str(key).endswith(("_token", "_tokens")) or key == DECODER)
        for key, item in value.items()
    }


def without_special(document: Mapping[str, Any], plain: Iterable[str]) -> dict[str, Any]:
    """The document without the tokens ``plain`` in its lists of special tokens."""
    dropped = set(plain)
    result = dict(document)
    for name in LISTS:
        if isinstance(document.get(name), list):
            result[name] = [item for item in document[name] if content_of(item) not in dropped]
    return result


def stop_strings(generation: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """generation_config.json with other names among the texts that end a generation."""
    stops = generation.get("stop_strings")
    if isinstance(stops, str):
        return {**generation, "stop_strings": names.get(stops, stops)}
    if isinstance(stops, list):
        return {**generation, "stop_strings": [names.get(s, s) if isinstance(s, str) else s for s in stops]}
    return dict(generation)


def template_documents(documents: Mapping[str, Any], names: Mapping[str, str], others: Iterable[str]) -> dict[str, Any]:
    """Every document that holds a chat template, with other names in it."""
    known = tuple(others)
    found: dict[str, Any] = {}
    if isinstance(documents.get(TEMPLATE), str):
        found[TEMPLATE] = in_template(documents[TEMPLATE], names, known)
    for name in COPIES:
        document = documents.get(name)
        if isinstance(document, dict) and document.get("chat_template") is not None:
            found[name] = {**document, "chat_template": in_templates(document["chat_template"], names, known)}
    return found
