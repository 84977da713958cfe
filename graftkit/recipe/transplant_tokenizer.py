"""The spec of transplant_tokenizer: the tokenizer of another checkpoint, with rows for its tokens."""

from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.choice import OneOf
from graftkit.recipe.fields import PathText
from graftkit.recipe.schemes import Distill, Mean, SchemeSpec
from graftkit.recipe.spec import Spec


class Fvt(SchemeSpec):
    """The mean of the rows of the token's text as the base's tokenizer splits it (FVT, Gee 2022)."""

    scheme: Literal["fvt"] = "fvt"


class CopyShared(SchemeSpec):
    """The mean of the rows of shared tokens, so that nothing of the base's other tokens stays in the table."""

    scheme: Literal["copy_shared"] = "copy_shared"


class Omp(SchemeSpec):
    """The token's row in the donor as a sparse combination of shared tokens' rows; the same one of the base's (arXiv 2506.06607)."""

    scheme: Literal["omp"] = "omp"
    k: Annotated[int, Field(ge=1, le=1024, description="How many shared tokens are combined, at most.")] = 64


TransplantScheme = Annotated[Fvt | Mean | CopyShared | Omp | Distill, OneOf("scheme", "scheme", words=True)]


class TransplantTokenizer(Spec):
    """Give the base the tokenizer of another checkpoint: rows of tokens that both have are kept, the others are made."""

    op: Literal["transplant_tokenizer"] = "transplant_tokenizer"
    donor: Annotated[
        PathText,
        Field(description="Folder or hub id with the tokenizer; only omp asks for weights there."),
    ]
    init: Annotated[
        TransplantScheme, Field(description="Rows of tokens that the base does not have, in every table alike.")
    ] = Fvt.model_construct()
    pad_to_multiple_of: Annotated[
        int | None,
        Field(ge=1, le=2**20, description="Grow the tables behind the donor's tokens to a multiple of this."),
    ] = None
    texts: Annotated[
        PathText | None,
        Field(
            description="A file of texts, on which bits per byte are measured before and after; null takes built-in ones."
        ),
    ] = None
