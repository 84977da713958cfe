"""The spec of cast: every floating tensor in another dtype."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from graftkit.recipe.fields import ListOf, Text
from graftkit.recipe.spec import Spec, problem
from graftkit.recipe.tensor_steps import Floating


def _no_eight_bits(value: object) -> object:
    if isinstance(value, str) and value.startswith(("float8", "fp8", "int")):
        raise problem(f"{value} needs scales beside its values: quantize the output with a tool for that")
    return value


class Cast(Spec):
    """Store every floating tensor in another dtype, each value rounded to nearest once, and let config.json say so."""

    op: Literal["cast"] = "cast"
    dtype: Annotated[
        Floating, BeforeValidator(_no_eight_bits), Field(description="The dtype, which config.json names from then on.")
    ]
    keep: Annotated[
        ListOf[Text],
        Field(
            description="Patterns of tensor names that keep their dtype in the file, such as *norm*, and !*bias to leave some out."
        ),
    ] = ()
