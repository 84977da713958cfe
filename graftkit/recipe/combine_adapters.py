"""The spec of combine_adapters: one peft adapter of several, each with a weight."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.choice import OrText
from graftkit.recipe.fields import ListOf, PathText, Text
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path

Kind = Literal[
    "cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
]  # fmt: skip


class WeightedAdapter(Spec):
    """An adapter and what its updates are multiplied with."""

    path: Annotated[PathText, Field(description="Folder that holds adapter_config.json and adapter_model.safetensors.")]
    weight: Annotated[float, Field(description="What its updates are multiplied with; negative takes them away.")] = 1.0
    leave: Annotated[
        ListOf[Text],
        Field(
            description="Files with trained values beside this adapter that are not part of the result, by name or pattern;"
            " any other is refused."
        ),
    ] = ()


class CombineAdapters(Spec):
    """Make one LoRA adapter of several for the same base, each with a weight."""

    op: Literal["combine_adapters"] = "combine_adapters"
    adapters: Annotated[
        ListOf[Annotated[WeightedAdapter, OrText("path")]],
        Field(min_length=1, json_schema_extra={"minItems": 1}, description="The adapters, by path or with a weight."),
    ]
    combination: Annotated[
        Kind,
        Field(
            description="peft's combination_type: cat is the weighted sum, and ranks add; svd is the nearest to it of svd_rank;"
            " the others are peft's own arithmetic, which gives no sum."
        ),
    ] = "cat"
    svd_rank: Annotated[
        int | None,
        Field(
            ge=1, le=65536, description="The rank for svd and what ends with it; null takes the largest of each weight."
        ),
    ] = None
    density: Annotated[
        float | None, Field(gt=0, le=1, description="The share of values that ties, dare and magnitude_prune keep.")
    ] = None
    majority_sign_method: Annotated[
        Literal["total", "frequency"] | None,
        Field(description="What elects the sign in ties: the sum of the values, or their number; null is total."),
    ] = None
    base: Annotated[
        Literal["check", "accept"],
        Field(
            description="Refuse a base that an adapter was not made for, as far as its report or its config tells (check), or"
            " take whatever base has the right shapes (accept)."
        ),
    ] = "check"

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Find fields that the combination does not read, and adapters that stand there twice."""
        kind = data.get("combination", "cat")
        if isinstance(kind, str):
            prunes = any(word in kind for word in ("ties", "dare", "prune"))
            if prunes and data.get("density") is None:
                yield (), f"{kind} needs density, the share of values that it keeps"
            elif not prunes and data.get("density") is not None:
                yield ("density",), f"{kind} keeps all values; leave it out"
            if not kind.endswith("svd") and data.get("svd_rank") is not None:
                yield ("svd_rank",), f"{kind} chooses no rank; svd does, or resize_adapter afterwards"
            if "ties" not in kind and data.get("majority_sign_method") is not None:
                yield ("majority_sign_method",), f"{kind} elects no sign; leave it out"
        adapters = data.get("adapters")
        seen: dict[object, int] = {}
        for place, one in enumerate(adapters if isinstance(adapters, list | tuple) else ()):
            path = one.get("path") if isinstance(one, Mapping) else getattr(one, "path", one)
            if not isinstance(path, str):
                continue
            first = seen.setdefault(path, place)
            if first != place:
                yield ("adapters", place), f"is adapters.{first} again; add up their weights there"
