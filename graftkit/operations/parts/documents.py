"""The files of a part: what of the whole's tokenizer, processors, template and generation config it keeps."""

from __future__ import annotations

from typing import Any

from graftkit.architecture.skeleton import Skeleton
from graftkit.architecture.vocabulary import takes_ids
from graftkit.checkpoint.checkpoint import Checkpoint

TEMPLATE, GENERATION, TOKENIZER_CONFIG = "chat_template.jinja", "generation_config.json", "tokenizer_config.json"

#: What a processor of several kinds of input is made of; the chat template in them is kept for the tokenizer.
PROCESSORS = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)

#: What only a model that takes token ids needs.
TOKENIZER = (
    "tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", TEMPLATE, "chat_template.json",
)  # fmt: skip


def part_documents(
    checkpoint: Checkpoint, config: dict[str, Any], part: Skeleton, *, own_config: bool
) -> dict[str, Any]:
    """The documents that change when a checkpoint becomes that of ``part``, whose config is ``config``; None drops one.

    ``own_config`` says that the config is one inside the whole's, so that the part takes one kind of input alone.
    """
    changes: dict[str, Any] = {"config.json": config}
    if not part.model.can_generate():
        changes[GENERATION] = None
    if own_config and takes_ids(part.model):
        changes |= _without_processors(checkpoint)
    elif own_config:
        changes |= dict.fromkeys(TOKENIZER)
    there = {*checkpoint.documents, *checkpoint.carried}
    return {name: value for name, value in changes.items() if value is not None or name in there}


def _without_processors(checkpoint: Checkpoint) -> dict[str, Any]:
    """A tokenizer alone, with the chat template that the processor had."""
    changes: dict[str, Any] = dict.fromkeys(PROCESSORS)
    documents = checkpoint.documents
    settings = documents.get(TOKENIZER_CONFIG, {})
    if "processor_class" in settings:
        changes[TOKENIZER_CONFIG] = {key: value for key, value in settings.items() if key != "processor_class"}
    if TEMPLATE not in documents and settings.get("chat_template") is None:
        templates = (
            documents.get(name, {}).get("chat_template") for name in ("chat_template.json", "processor_config.json")
        )
        template = next((text for text in templates if isinstance(text, str)), None)
        changes |= {} if template is None else {TEMPLATE: template}
    return changes
