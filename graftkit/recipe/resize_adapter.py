"""The spec of resize_adapter: another rank for a peft adapter."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import PathText
from graftkit.recipe.spec import Spec


class ResizeAdapter(Spec):
    """Give every weight of a LoRA adapter another rank: larger by zeros, smaller by the best approximation."""

    op: Literal["resize_adapter"] = "resize_adapter"
    adapter: Annotated[
        PathText, Field(description="Folder that holds adapter_config.json and adapter_model.safetensors.")
    ]
    r: Annotated[int, Field(ge=1, le=65536, description="The new rank; the scaling of every weight stays as it is.")]
