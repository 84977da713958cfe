"""The spec of take_tensors: tensors of another checkpoint, byte for byte."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import ListOf, PathText, Text
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path


class TakeTensors(Spec):
    """Take tensors from another checkpoint: a dropped multi-token-prediction block, a vision tower, one layer of a fine-tune."""

    op: Literal["take_tensors"] = "take_tensors"
    donor: Annotated[PathText, Field(description="Folder or hub id of the checkpoint that the tensors are taken from.")]
    tensors: Annotated[
        ListOf[Text],
        Field(
            min_length=1,
            description="Patterns of the donor's tensor names, such as mtp.* or *.layers.3.*, and !*.bias to leave some out; they go"
            " where the base has the same tensor, or under their own names.",
        ),
    ]
    cast: Annotated[
        bool,
        Field(description="Round values to the dtype that the base has there; without it another dtype is refused."),
    ] = False

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse patterns that only leave out."""
        patterns = data.get("tensors")
        texts = [item for item in patterns if isinstance(item, str)] if isinstance(patterns, list | tuple) else []
        if texts and all(text.startswith("!") for text in texts):
            yield ("tensors",), "only leaves out; add a pattern of what to take, such as *"
