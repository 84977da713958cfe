"""The spec of convert: what is not yet a plain checkpoint becomes one."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import Text
from graftkit.recipe.spec import Spec


class Convert(Spec):
    """Make a plain checkpoint: weights of pickles as safetensors, and a tokenizer.json of the files of a slow tokenizer.

    It stands first, gathers what a sharded training left (torch.distributed.checkpoint, DeepSpeed), and unpacks quantized
    weights where it is asked to.

    Pickles are read with --allow-pickle on the command line alone, by torch's unpickler of weights.
    """

    op: Literal["convert"] = "convert"
    dequantize: Annotated[
        bool,
        Field(
            description="Unpack quantized weights (fp8 with block scales, mxfp4, nvfp4) to bfloat16: each value exactly what codes and"
            " scales say, rounded once; the result's config has no quantization_config."
        ),
    ] = False
    prefix: Annotated[
        Text | None,
        Field(
            description="What stands before the names of the weights in what a sharded training left, such as app.model; by default"
            " what leaves the names of the class."
        ),
    ] = None
