"""The spec of merge_adapter: a peft adapter folded into its base."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import PathText
from graftkit.recipe.spec import Spec


class MergeAdapter(Spec):
    """Fold a LoRA adapter, with its head and token rows, into the base; the result needs no peft."""

    op: Literal["merge_adapter"] = "merge_adapter"
    adapter: Annotated[
        PathText, Field(description="Folder that holds adapter_config.json and adapter_model.safetensors.")
    ]
