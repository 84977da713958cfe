"""The spec of upcycle_moe: a mixture of experts, each a copy of the dense feed-forward layer."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.fields import Text
from graftkit.recipe.spec import Spec
from graftkit.recipe.weight_schemes import WeightNormal, WeightScheme
from graftkit.recipe_file.problems import Path

#: Schemes that cannot begin a router, each with the reason.
UNFIT = {
    "zeros": "all experts would tie, and the first ones take every token; take a random scheme",
    "ones": "all experts would tie, and the first ones take every token; take a random scheme",
    "constant": "all experts would tie, and the first ones take every token; take a random scheme",
    "mup": "gives learning rates to whole models, and here routers alone are new; take another scheme",
    "matched": "there are no trained rows beside those of a new router; take another scheme",
}

Count = Annotated[int, Field(ge=1, le=4096)]


class UpcycleMoe(Spec):
    """Make a dense model a sparse mixture of experts that does what it did (Komatsuzaki 2022)."""

    op: Literal["upcycle_moe"] = "upcycle_moe"
    num_experts: Annotated[
        int, Field(ge=2, le=4096, description="How many copies of each feed-forward layer there are.")
    ]
    num_experts_per_tok: Annotated[Count, Field(description="How many of them each token is sent to.")] = 2
    architecture: Annotated[
        Text | None,
        Field(
            description="transformers' sparse class, such as MixtralForCausalLM; null means the nearest whose small model gives the"
            " same outputs."
        ),
    ] = None
    router_init: Annotated[
        WeightScheme,
        Field(description="How routers begin; a normal one takes its std from the config where none is given."),
    ] = WeightNormal()

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse more experts for a token than there are, and routers that prefer none."""
        experts, each = data.get("num_experts"), data.get("num_experts_per_tok", 2)
        if type(experts) is int and type(each) is int and each > experts >= 2:
            yield ("num_experts_per_tok",), f"{each} are more than the {experts} experts that there are"
        scheme = data.get("router_init")
        name = scheme.get("scheme") if isinstance(scheme, dict) else scheme
        if isinstance(name, str) and name in UNFIT:
            yield ("router_init",), UNFIT[name]
