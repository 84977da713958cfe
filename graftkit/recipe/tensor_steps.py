"""The steps of edit_tensors that change tensors: each a small spec."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.choice import OneOf
from graftkit.recipe.expressions import Expression, Expressions, wrong_template
from graftkit.recipe.fields import ListOf, PathText, Text
from graftkit.recipe.schemes import Zeros
from graftkit.recipe.spec import Spec
from graftkit.recipe.weight_schemes import (
    Constant,
    KaimingNormal,
    KaimingUniform,
    LecunNormal,
    Ones,
    Orthogonal,
    TruncNormal,
    Uniform,
    WeightNormal,
    XavierNormal,
    XavierUniform,
)
from graftkit.recipe_file.problems import Path

Floating = Literal["float64", "float32", "float16", "bfloat16"]

#: No tensor has more.
MAX_AXES = 16

Axis = Annotated[int, Field(ge=-MAX_AXES, lt=MAX_AXES, description="The axis; -1 is the last.")]

FillScheme = Annotated[
    Zeros
    | WeightNormal
    | Ones
    | Constant
    | TruncNormal
    | Uniform
    | XavierUniform
    | XavierNormal
    | KaimingUniform
    | KaimingNormal
    | LecunNormal
    | Orthogonal,
    OneOf("scheme", "scheme", words=True),
]


class Cast(Spec):
    """Another floating dtype, each value rounded to nearest once."""

    tensors: Expressions
    dtype: Annotated[Floating, Field(description="The new dtype; tensors of integers are left as they are.")]


class Scale(Spec):
    """Each value times a factor, computed in float64 and rounded once."""

    tensors: Expressions
    factor: Annotated[float, Field(description="What each value is multiplied with.")]


class AddDifference(Spec):
    """What one checkpoint has more than another, times a weight; computed in float64 and rounded once."""

    tensors: Expressions
    fine_tuned: Annotated[
        PathText, Field(description="The checkpoint whose change is added; tensors of the same names.")
    ]
    base: Annotated[
        PathText | None, Field(description="The one that it was trained from; null means the recipe's base_model.")
    ] = None
    weight: Annotated[float, Field(description="What the difference is multiplied with.")] = 1.0


class Split(Spec):
    """Cut a tensor into several along an axis."""

    tensors: Expressions
    into: Annotated[
        ListOf[Text],
        Field(
            min_length=2,
            json_schema_extra={"minItems": 2},
            description="The names of the parts in their order, with groups of the expression as \\1.",
        ),
    ]
    axis: Axis = 0
    sizes: Annotated[
        ListOf[Annotated[int, Field(ge=1)]],
        Field(description="How many indices each part gets; empty means equal parts."),
    ] = ()

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a size too many or too few, and names whose groups are not there."""
        into, sizes = data.get("into"), data.get("sizes")
        if isinstance(into, list | tuple) and isinstance(sizes, list | tuple) and sizes and len(into) != len(sizes):
            yield ("sizes",), f"has {len(sizes)} for {len(into)} parts"
        yield from _templates(data.get("tensors"), into)


class Concat(Spec):
    """Join tensors along an axis."""

    tensors: Annotated[
        ListOf[Expression],
        Field(
            min_length=1,
            json_schema_extra={"minItems": 1},
            description="The parts in their order; where an expression fits several, those are ordered by the numbers in their names.",
        ),
    ]
    into: Annotated[Text, Field(description="The name of what they become, with groups of the expressions as \\1.")]
    axis: Axis = 0

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a name whose groups are not there."""
        for place, _, wrong in _pairs(data.get("tensors"), [data.get("into")]):
            yield ("tensors", place), wrong


class Permute(Spec):
    """The axes in another order, as ``torch.permute``."""

    tensors: Expressions
    dims: Annotated[
        ListOf[Annotated[int, Field(ge=0, lt=MAX_AXES)]],
        Field(min_length=1, json_schema_extra={"minItems": 1}, description="The old axes in their new order."),
    ]

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse what is no order of axes, or the order that they have."""
        dims = data.get("dims")
        if not isinstance(dims, list | tuple) or not dims or not all(type(axis) is int for axis in dims):
            return
        if sorted(dims) != list(range(len(dims))):
            yield ("dims",), f"must be the axes from 0 to {len(dims) - 1}, each once"
        elif list(dims) == sorted(dims):
            yield ("dims",), "is the order that the axes have"


class Reshape(Spec):
    """Another shape of the same bytes."""

    tensors: Expressions
    shape: Annotated[
        ListOf[Annotated[int, Field(ge=-1)]], Field(description="The new shape; one size may be -1, what is left.")
    ]

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse two sizes that are left open."""
        shape = data.get("shape")
        if isinstance(shape, list | tuple) and list(shape).count(-1) > 1:
            yield ("shape",), "leaves more than one size open"


class Fill(Spec):
    """Values by a scheme, in tensors that are there or in new ones."""

    tensors: Expressions
    init: Annotated[FillScheme, Field(description="The scheme; those that need the whole model are reinit's.")]
    shape: Annotated[
        ListOf[Annotated[int, Field(ge=1)]] | None,
        Field(description="Makes new tensors of these names and this shape; null fills those that are there."),
    ] = None
    dtype: Annotated[Floating | None, Field(description="The dtype of new tensors.")] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a shape without a dtype, and the other way round."""
        if (data.get("shape") is None) != (data.get("dtype") is None):
            given, lacking = ("shape", "dtype") if data.get("dtype") is None else ("dtype", "shape")
            yield (given,), f"is for new tensors, which need {lacking} too"


class LowRank(Spec):
    """The nearest matrix of a rank, by singular values in float64, in the shape of the old one."""

    tensors: Expressions
    rank: Annotated[int, Field(ge=1, description="How many singular values are kept.")]


def _templates(expressions: object, templates: object) -> Iterator[tuple[Path, str]]:
    for _, place, wrong in _pairs(expressions, templates):
        yield ("into", place), wrong


def _pairs(expressions: object, templates: object) -> Iterator[tuple[int, int, str]]:
    """Yield the places of each expression and each template that do not go together, with the reason."""
    for first, expression in enumerate(expressions if isinstance(expressions, list | tuple) else ()):
        for second, template in enumerate(templates if isinstance(templates, list | tuple) else ()):
            if (
                isinstance(expression, str)
                and isinstance(template, str)
                and (wrong := wrong_template(expression, template))
            ):
                yield first, second, wrong
