"""What the class that tokenizer_config.json names asks of those who load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: What transformers calls a plain fast tokenizer since version 5, and the name that earlier versions know as well.
NEW_NAME, KNOWN_NAME = "TokenizersBackend", "PreTrainedTokenizerFast"


def class_note(documents: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence where the tokenizer's class has a name that transformers knows since version 5 alone."""
    if (documents.get("tokenizer_config.json") or {}).get("tokenizer_class") == NEW_NAME:
        yield (
            f"tokenizer_config.json names the class {NEW_NAME}, which transformers 4 does not know; {KNOWN_NAME} is the name that"
            " all versions load"
        )
