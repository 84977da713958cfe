"""The spec of edit_tensors: steps on tensors by name, for what has no operation of its own."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.expressions import Expressions, Templates, wrong_template
from graftkit.recipe.fields import ListOf
from graftkit.recipe.spec import Spec
from graftkit.recipe.tensor_assertions import Assertion
from graftkit.recipe.tensor_steps import (
    AddDifference,
    Cast,
    Concat,
    Fill,
    LowRank,
    Permute,
    Reshape,
    Scale,
    Split,
)
from graftkit.recipe_file.problems import Path


class Step(Spec):
    """One step: a mapping with one key, which says what is done."""

    rename: Annotated[
        Templates | None,
        Field(
            description="Other names: a regular expression that fits whole names, and the new name with its groups as \\1."
            " Of several that fit, the first counts."
        ),
    ] = None
    delete: Annotated[Expressions | None, Field(description="Tensors to drop.")] = None
    cast: Annotated[Cast | None, Field(description="Another floating dtype.")] = None
    scale: Annotated[Scale | None, Field(description="Each value times a factor.")] = None
    add: Annotated[AddDifference | None, Field(description="The difference of two checkpoints, times a weight.")] = None
    split: Annotated[Split | None, Field(description="A tensor cut into several.")] = None
    concat: Annotated[Concat | None, Field(description="Tensors joined into one.")] = None
    permute: Annotated[Permute | None, Field(description="Axes in another order.")] = None
    reshape: Annotated[Reshape | None, Field(description="Another shape of the same bytes.")] = None
    fill: Annotated[Fill | None, Field(description="Values by a scheme.")] = None
    low_rank: Annotated[LowRank | None, Field(description="The nearest matrix of a rank.")] = None
    assertion: Annotated[
        Assertion | None, Field(alias="assert", description="What has to hold at this place; changes nothing.")
    ] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a step of none or of several kinds, and new names whose groups are not there."""
        given = [name for name in cls.written_names() if data.get(name) is not None]
        if not given and data.keys() <= {*cls.written_names()}:
            yield (), f"does nothing; it is one of: {', '.join(cls.written_names())}"
        elif len(given) > 1:
            yield (given[1],), f"belongs into a step of its own, behind {given[0]}"
        names = data.get("rename")
        for expression, template in names.items() if isinstance(names, Mapping) else ():
            written = isinstance(expression, str) and isinstance(template, str)
            if written and (wrong := wrong_template(expression, template)):
                yield ("rename", expression), wrong
        if isinstance(names, Mapping) and not names:
            yield ("rename",), "names nothing"

    @property
    def kind(self) -> str:
        """The key of the mapping."""
        fields = type(self).model_fields
        return next(fields[name].alias or name for name in fields if getattr(self, name) is not None)

    @property
    def body(self) -> object:
        """What stands under the key."""
        return next(value for name in type(self).model_fields if (value := getattr(self, name)) is not None)


class EditTensors(Spec):
    """Change tensors by name, one step after the other, for what has no operation of its own."""

    op: Literal["edit_tensors"] = "edit_tensors"
    steps: Annotated[
        ListOf[Step],
        Field(min_length=1, json_schema_extra={"minItems": 1}, description="What is done, in this order."),
    ]

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse steps that only assert, since they would write a copy."""
        steps = data.get("steps")
        if (
            isinstance(steps, list | tuple)
            and steps
            and all(isinstance(step, Mapping) and [*step] == ["assert"] for step in steps)
        ):
            yield ("steps",), "only assert, so that the output would be a copy; add what is to change"
