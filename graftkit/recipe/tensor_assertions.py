"""The step of edit_tensors that changes nothing: what has to hold of the tensors at that place."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from graftkit.recipe.expressions import Expression
from graftkit.recipe.fields import FrozenMapping, ListOf, Text
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path

Dtype = Literal[
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8", "uint8",
    "bool",
]  # fmt: skip

Shape = ListOf[Annotated[int, Field(ge=-1)]]


class Between(Spec):
    """The ends of an interval, either of which may be left out."""

    min: Annotated[float | None, Field(description="The smallest value that is right.")] = None
    max: Annotated[float | None, Field(description="The largest value that is right.")] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse an interval without ends, and one that is empty."""
        low, high = data.get("min"), data.get("max")
        if low is None and high is None:
            yield (), "needs min, max or both"
        elif isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            yield ("max",), f"is below min, which is {low}"


class Assertion(Spec):
    """What has to hold. Shapes and dtypes are looked at when the recipe is planned, values before anything is written."""

    shape: Annotated[
        Annotated[Mapping[Expression, Shape], AfterValidator(FrozenMapping), PlainSerializer(dict)] | None,
        Field(description="Tensors and their shape; -1 is any size."),
    ] = None
    dtype: Annotated[
        Annotated[Mapping[Expression, Dtype], AfterValidator(FrozenMapping), PlainSerializer(dict)] | None,
        Field(description="Tensors and their dtype."),
    ] = None
    equal: Annotated[
        ListOf[Text], Field(description="Names of two tensors or more that hold the same bytes in the same shape.")
    ] = ()
    finite: Annotated[ListOf[Expression], Field(description="Tensors without NaN and infinity.")] = ()
    norm: Annotated[
        Annotated[Mapping[Expression, Between], AfterValidator(FrozenMapping), PlainSerializer(dict)] | None,
        Field(description="Tensors, and between what the root of the sum of their squares lies."),
    ] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse an assertion of nothing, and equality with nothing."""
        if not any(data.values()):
            yield (), f"asserts nothing; give one of {', '.join(cls.model_fields)}"
        equal = data.get("equal")
        if isinstance(equal, list | tuple) and len(equal) == 1:
            yield ("equal",), "needs two names or more"
