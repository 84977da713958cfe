"""Which function drafts which kind of recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graftkit.drafting import heads, vocabulary, weights
from graftkit.drafting.draft import Draft
from graftkit.drafting.facts import Facts

#: A draft for a model.
#:
#: Raises:
#:     RecipeError: the model cannot have such a recipe, or needs none, and why.
#:     InputRejected: the same, where its class or its files are the reason.
DRAFTS: Mapping[str, Callable[[Facts], Draft]] = {
    "lora": weights.lora,
    "tools": vocabulary.tools,
    "chat": vocabulary.chat,
    "pad": vocabulary.pad,
    "reserved": vocabulary.reserved,
    "classifier": heads.classifier,
    "ner": heads.ner,
    "reward": heads.reward,
    "reinit": weights.reinit,
}
