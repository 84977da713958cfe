"""The spec of learn_tokens: pieces learned from texts, behind those that the tokenizer's model has."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import PathText
from graftkit.recipe.schemes import InputScheme, Scheme, SubwordMean
from graftkit.recipe.spec import Spec


class LearnTokens(Spec):
    """Learn pieces from texts, put them and their merges behind the tokenizer's own, and give them rows."""

    op: Literal["learn_tokens"] = "learn_tokens"
    texts: Annotated[
        PathText,
        Field(description="Path of a .txt with a text a line, or of a .jsonl, .csv or .parquet with a field text."),
    ]
    size: Annotated[int, Field(ge=1, le=2**20, description="How many pieces to learn, the most frequent first.")]
    min_frequency: Annotated[
        int, Field(ge=1, le=2**32, description="Fewest times that two pieces must stand side by side to become one.")
    ] = 2
    held_out: Annotated[
        float,
        Field(
            gt=0, le=0.5, description="Share of the texts that nothing is learned from, to measure tokens per byte on."
        ),
    ] = 0.1
    init: Annotated[InputScheme, Field(description="Input rows of the learned pieces: any scheme of extend_vocab.")] = (
        SubwordMean.model_construct()
    )
    output_init: Annotated[
        Scheme | None, Field(description="Output rows (and bias) of an untied model; null means mean.")
    ] = None
    pad_to_multiple_of: Annotated[
        int | None, Field(ge=1, le=2**20, description="Grow the tables to a multiple of this; they never shrink.")
    ] = None
