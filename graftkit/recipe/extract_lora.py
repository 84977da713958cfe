"""The spec of extract_lora: what fine-tuning changed, as an adapter."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import ListOf, PathText, Text
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path


class ExtractLora(Spec):
    """Make a LoRA adapter of the difference between a fine-tuned checkpoint and its base."""

    op: Literal["extract_lora"] = "extract_lora"
    fine_tuned: Annotated[PathText, Field(description="Folder or hub id of the fine-tuned checkpoint.")]
    r: Annotated[int | None, Field(ge=1, le=65536, description="The rank of every weight; or give energy.")] = None
    energy: Annotated[
        float | None, Field(gt=0, lt=1, description="The share of each difference's energy to keep; or give r.")
    ] = None
    modules_to_save: Annotated[
        ListOf[Text], Field(description="Modules that differ and are stored whole, such as norm or lm_head.")
    ] = ()
    allow_lost: Annotated[
        ListOf[Text], Field(description="Tensors whose difference may be lost, or modules that hold them.")
    ] = ()

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Ask for exactly one of the two ways to choose a rank."""
        if data.get("r") is None and data.get("energy") is None:
            yield (), "needs r, one rank for all, or energy, the share of each difference to keep"
        elif data.get("r") is not None and data.get("energy") is not None:
            yield ("energy",), "r gives the rank already; leave one of them out"
