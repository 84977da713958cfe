"""What somebody who uses a chat template should know: messages that it loses, markers that are no tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.checkpoint.tokenizer.chat_template import COPIES
from graftkit.checkpoint.tokenizer.conversation import lost_messages, lost_tools, renders
from graftkit.checkpoint.tokenizer.files import TokenizerFiles
from graftkit.checkpoint.tokenizer.template_bounds import why_unbounded
from graftkit.errors import few, printable
from graftkit.recipe.chat_template import holds_jinja

#: How models mark turns and calls: ``<|im_start|>``, ``<start_of_turn>``. A name without bars or underscores may be plain text.
_MARKER = re.compile(r"<\|[^\s<>|]{1,60}\|>|</?[a-z]{1,20}(?:_[a-z]{1,20}){1,4}>")


def template_notes(documents: Mapping[str, Any], tokenizer: TokenizerFiles) -> Iterator[str]:
    """Yield a sentence for each chat template that is the same text for every conversation, and for markers that are split."""
    for name, text in templates(documents).items():
        which = _which(name)
        if not holds_jinja(text):
            yield f"{which} holds no Jinja: every conversation becomes the same text"
        split = {
            marker: len(tokenizer.encode(marker)) for marker in _MARKER.findall(text) if tokenizer.id_of(marker) is None
        }
        if split:
            marker, pieces = next(iter(split.items()))
            yield (
                f"{which} has markers that are no tokens: {few(split)}; {printable(marker)!r} is split into {pieces}; add them"
                " as special_tokens with extend_vocab"
            )


def conversation_notes(documents: Mapping[str, Any], tokenizer: TokenizerFiles) -> Iterator[str]:
    """Yield a sentence for each chat template that, rendered, loses messages or tools, or that cannot be rendered within bounds."""
    for name, text in templates(documents).items():
        if not holds_jinja(text):
            continue
        if why := why_unbounded(text):
            yield f"{_which(name)} {why}"
            continue
        render = renders(text, tokenizer.special)
        yield from (f"{_which(name)} {how}" for how in (*lost_messages(render), *lost_tools(render, text)))


def templates(documents: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates that transformers reads, by name; the only one has no name."""
    if isinstance(text := documents.get("chat_template.jinja"), str):
        return {"": text}
    copies = (documents[name] for name in COPIES if isinstance(documents.get(name), dict))
    found = next((text for copy in copies if (text := copy.get("chat_template")) is not None), None)
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        return {str(name): text for name, text in named.items() if isinstance(text, str)}
    return {"": found} if isinstance(found, str) else {}


def _which(name: str) -> str:
    return f"the chat template {printable(name)!r}" if name else "the chat template"
