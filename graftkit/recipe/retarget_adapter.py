"""The spec of retarget_adapter: an adapter with the names and the layout of another class."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import PathText, Text
from graftkit.recipe.spec import Spec


class RetargetAdapter(Spec):
    """Write a LoRA adapter of another class for this base: of its text model, wrapper or backbone, or of an older transformers."""

    op: Literal["retarget_adapter"] = "retarget_adapter"
    adapter: Annotated[
        PathText, Field(description="Folder that holds adapter_config.json and adapter_model.safetensors.")
    ]
    to: Annotated[
        Text | None,
        Field(
            description="Class of transformers whose names the adapter gets, which is built from the base's config, such as its"
            " text model; null means the base's own class."
        ),
    ] = None
