"""Regular expressions of a recipe, and the names that they make of what they match."""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field, PlainSerializer

from graftkit.recipe.fields import FrozenMapping, ListOf, Text
from graftkit.recipe.spec import problem
from graftkit.recipe_file.wording import shown

#: Longer expressions are refused: compiling one takes time too.
MAX_EXPRESSION = 1000


def _expression(text: str) -> str:
    if len(text) > MAX_EXPRESSION:
        raise problem(f"is longer than {MAX_EXPRESSION} characters")
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise problem(f"{shown(text)} is not a regular expression: {error}") from error
    return text


def wrong_template(expression: str, template: str) -> str | None:
    """Say why ``template`` cannot be filled with the groups of ``expression``; None where it can, or where that is no expression."""
    try:
        compiled = re.compile(expression)
    except (re.error, OverflowError, RecursionError):
        return None
    names = {number: f"?P<{name}>" for name, number in compiled.groupindex.items()}
    groups = "".join(f"({names.get(number, '')})" for number in range(1, compiled.groups + 1))
    try:
        re.sub(groups, template, "")
    except (re.error, IndexError) as error:
        return f"{shown(template)} does not fit {shown(expression)}: {error}"
    return None


#: A regular expression that has to fit a whole name; a name that is there as it is written means that tensor alone.
Expression = Annotated[Text, AfterValidator(_expression)]

#: Names or expressions of tensors, at least one.
Expressions = Annotated[
    ListOf[Expression],
    Field(
        min_length=1,
        json_schema_extra={"minItems": 1},
        description="Names of tensors, or regular expressions that fit whole names; each has to fit one.",
    ),
]

#: An expression, and the name that is made of what it fits, with its groups as ``\\1``.
Templates = Annotated[Mapping[Expression, Text], AfterValidator(FrozenMapping), PlainSerializer(dict)]
