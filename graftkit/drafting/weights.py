"""Drafts that leave vocabulary and head as they are: an adapter, and fresh layers."""

from __future__ import annotations

from graftkit.architecture.layers import layer_list
from graftkit.drafting.draft import Draft, Step
from graftkit.drafting.facts import Facts
from graftkit.errors import RecipeError

#: So many top layers are made anew, where the model has more.
FRESH_LAYERS = 2


def lora(facts: Facts) -> Draft:
    """A LoRA adapter on every linear layer."""
    del facts
    comments = {
        "op": "nothing of the base is changed or copied: the adapter alone is written",
        "r": "the rank; the update is scaled by lora_alpha / r",
        "target_modules": "or names, such as those above: [q_proj, v_proj]",
        "init_lora_weights": "the update is zero at the start; pissa, olora, ... start from the weights (docs/lora.md)",
    }
    fields = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "init_lora_weights": True}
    return Draft("a LoRA adapter that starts as the identity", (Step("add_lora", fields, comments),))


def reinit(facts: Facts) -> Draft:
    """Fresh top layers."""
    layers = layer_list(facts.structure.skeleton)
    if layers.count <= 1:
        raise RecipeError(f"the model has {layers.count} layer, and nothing trained would be left of it")
    count = min(FRESH_LAYERS, layers.count - 1)
    comments = {
        "op": "what the top layers learned is lost on purpose: they get what a model of this class has before it is trained",
        "layers": f"of {layers.count} in {layers.path}, numbered from 0; or a list of numbers",
    }
    return Draft(
        "fresh top layers, for fine-tuning on few examples", (Step("reinit", {"layers": f"last {count}"}, comments),)
    )
