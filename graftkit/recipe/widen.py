"""The spec of widen: which sizes of the config become larger, and how new weights begin."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from graftkit.recipe.fields import FrozenMapping, PathText, Text
from graftkit.recipe.spec import Spec
from graftkit.recipe.weight_schemes import WeightScheme
from graftkit.recipe_file.problems import Path

#: Schemes that cannot begin new units, each with the reason.
UNFIT = {
    "zeros": "what is new would never learn: what it writes to is zero too; leave init out",
    "ones": "all new units would be equal and learn the same; take a random scheme",
    "constant": "all new units would be equal and learn the same; take a random scheme",
    "mup": "gives learning rates to whole parameters, and here a part of each is new; take another scheme",
}


Size = Annotated[int, Field(ge=1, lt=2**31)]
Sizes = Annotated[Mapping[Text, Size], AfterValidator(FrozenMapping), PlainSerializer(dict)]


class Widen(Spec):
    """Make widths of the model larger without a change of what it does: feed-forward units, key-value heads and others."""

    op: Literal["widen"] = "widen"
    sizes: Annotated[
        Sizes,
        Field(
            min_length=1,
            json_schema_extra={"minProperties": 1},
            description="Fields of config.json by transformers' names, each with its larger value, such as {intermediate_size:"
            " 14336}; text_config.intermediate_size where the text model is a section.",
        ),
    ]
    init: Annotated[
        WeightScheme | None,
        Field(
            description="New weights that are not zero; null means matched, the norms of the trained rows beside them."
        ),
    ] = None
    allow_change: Annotated[
        bool,
        Field(
            description="Where nothing keeps the function, as with more experts, put new slices beside the old ones all the same,"
            " and measure the change."
        ),
    ] = False
    texts: Annotated[
        PathText | None,
        Field(
            description="For allow_change: a file of texts, on which KL and perplexity are measured before and after."
        ),
    ] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse schemes with which new units cannot learn, or all alike, and texts that would measure nothing."""
        if data.get("texts") is not None and not data.get("allow_change", False):
            yield ("texts",), "measures nothing where the outputs stay as they are; it is for allow_change: true"
        scheme = data.get("init")
        name = scheme.get("scheme") if isinstance(scheme, dict) else scheme
        if isinstance(name, str) and name in UNFIT:
            yield ("init",), UNFIT[name]
