"""The spec of extract_submodel: a part of a model as a checkpoint of its own."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import Text
from graftkit.recipe.spec import Spec


class ExtractSubmodel(Spec):
    """Take a part out of a model: the text model of a wrapper, the encoder of an encoder-decoder, the base under a head."""

    op: Literal["extract_submodel"] = "extract_submodel"
    architecture: Annotated[
        Text,
        Field(description="transformers' class of the part, such as Qwen3ForCausalLM, T5EncoderModel or BertModel."),
    ]
    compare: Annotated[
        Literal["whole", "part"],
        Field(
            description="Compare the outputs of the part with those of the whole on texts (whole), or with those of the same module"
            " in the whole alone (part), for wrappers that number positions in their own way."
        ),
    ] = "whole"
