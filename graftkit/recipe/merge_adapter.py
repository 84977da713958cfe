"""The spec of merge_adapter: a peft adapter folded into its base."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import ListOf, PathText, Text
from graftkit.recipe.spec import Spec


class MergeAdapter(Spec):
    """Fold a LoRA adapter, with its head and token rows, into the base; the result needs no peft."""

    op: Literal["merge_adapter"] = "merge_adapter"
    adapter: Annotated[
        PathText, Field(description="Folder that holds adapter_config.json and adapter_model.safetensors.")
    ]
    base: Annotated[
        Literal["check", "accept"],
        Field(
            description="Refuse a base that the adapter was not made for, as far as its report or its config tells (check), or"
            " merge into whatever base has the right shapes (accept)."
        ),
    ] = "check"
    dtype: Annotated[
        Literal["float32"] | None,
        Field(
            description="Write the whole base in this dtype, so that no part of a small update is rounded away; null keeps each"
            " tensor's own."
        ),
    ] = None
    dequantize: Annotated[
        bool,
        Field(
            description="Unpack the quantized weights of the base (fp8 with block scales, mxfp4, nvfp4) before the adapter is folded"
            " in; the result is plain, in bfloat16 or in dtype. A quantized base is refused without."
        ),
    ] = False
    leave: Annotated[
        ListOf[Text],
        Field(
            description="Files with trained values beside the adapter that are not merged, such as a vision tower, by name or"
            " pattern; any other is refused."
        ),
    ] = ()
