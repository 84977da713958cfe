"""The spec of reinit: which tensors get fresh values, and from which scheme."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from graftkit.recipe.fields import ListOf, Text
from graftkit.recipe.spec import Spec, problem
from graftkit.recipe.weight_schemes import WeightScheme
from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import found, shown

_COUNTED = re.compile(r"(first|last) ([1-9][0-9]{0,5})\Z")


def _layers(value: object) -> object:
    if isinstance(value, str) and _COUNTED.match(value):
        return value
    if isinstance(value, list | tuple) and value:
        wrong = [item for item in value if type(item) is not int or item < 0]
        if not wrong and len(set(value)) == len(value):
            return tuple(value)
        if not wrong:
            raise problem("names a layer twice")
    raise problem(f"must be 'last N', 'first N' or a list of layer numbers from 0 on, found {found(value)}")


#: ``last 2``, ``first 3`` or numbers from 0 on.
Layers = Annotated[
    Annotated[str, Field(json_schema_extra={"pattern": "^(first|last) [1-9][0-9]{0,5}$"})]
    | tuple[Annotated[int, Field(ge=0)], ...],
    BeforeValidator(_layers),
]


class Reinit(Spec):
    """Give tensors the values of a model that was never trained: matrices by a scheme, the rest as their class does."""

    op: Literal["reinit"] = "reinit"
    layers: Annotated[
        Layers | None, Field(description="Layers of the main stack: 'last 2', 'first 2' or their numbers, from 0 on.")
    ] = None
    parameters: Annotated[
        ListOf[Text],
        Field(
            description="Patterns of parameter names, such as *.mlp.*, and !*.bias to leave some out; with layers, only"
            " what both select is new."
        ),
    ] = ()
    init: Annotated[
        WeightScheme | None,
        Field(
            description="Values of matrices, embeddings and kernels; null means normal. Gains and biases always get what"
            " their class gives a new model."
        ),
    ] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse an operation that selects nothing, and a pattern given twice."""
        patterns = data.get("parameters")
        texts = [item for item in patterns if isinstance(item, str)] if isinstance(patterns, list | tuple) else []
        if data.get("layers") is None and not patterns:
            yield (), "selects nothing; give layers, parameters or both"
        elif data.get("layers") is None and texts and all(text.startswith("!") for text in texts):
            yield ("parameters",), "only leaves out; add a pattern of what to take, such as *"
        for index, text in enumerate(texts):
            if text in texts[:index]:
                yield ("parameters", index), f"the pattern {shown(text)} is given a second time"

    def layer_numbers(self, count: int) -> tuple[int, ...]:
        """The numbers of the selected layers out of ``count``; some may not exist."""
        if not isinstance(self.layers, str):
            return self.layers or ()
        end, _, number = self.layers.partition(" ")
        return tuple(range(count - int(number), count) if end == "last" else range(int(number)))
