"""The spec of extend_positions: longer sequences, by more rows of a learned table or by other rotary angles."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.adapter_fields import Values
from graftkit.recipe.choice import OneOf
from graftkit.recipe.fields import FrozenMapping
from graftkit.recipe.schemes import Mean, MeanCov, Normal, SchemeSpec, Zeros
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path

#: More positions than any model has been trained for.
MOST_POSITIONS = 2**26


class Repeat(SchemeSpec):
    """The old rows from the first on, again and again (Longformer, Beltagy 2020): nearby positions keep their relation."""

    scheme: Literal["copy"] = "copy"


class Interpolate(SchemeSpec):
    """The old table stretched over the new length, linearly between neighbours: every row changes."""

    scheme: Literal["interpolate"] = "interpolate"


PositionScheme = Annotated[
    Repeat | Interpolate | Mean | MeanCov | Normal | Zeros, OneOf("scheme", "scheme", words=True)
]


class ExtendPositions(Spec):
    """Let a model take longer sequences: a learned table of positions gets more rows, rotary positions other angles."""

    op: Literal["extend_positions"] = "extend_positions"
    max_position_embeddings: Annotated[
        int,
        Field(
            gt=0,
            le=MOST_POSITIONS,
            description="What config.json says from then on, under the name that it has for it.",
        ),
    ]
    init: Annotated[
        PositionScheme | None,
        Field(description="New rows of a learned table; null means copy. interpolate changes the old ones too."),
    ] = None
    rope_parameters: Annotated[
        Values,
        Field(
            description="Scaling of rotary positions, such as {rope_type: yarn, factor: 4.0}; transformers checks it."
        ),
    ] = FrozenMapping()

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse what no model has both of."""
        if data.get("init") is not None and data.get("rope_parameters"):
            yield ("rope_parameters",), "rotary positions have no table that init could fill; leave one of the two out"
