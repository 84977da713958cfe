"""The recipe: what to graft onto which checkpoint, and where to."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from graftkit.recipe.fields import ListOf, OutputText, PathText, Text
from graftkit.recipe.operations import MAKE_ADAPTERS, Operation
from graftkit.recipe.spec import Spec, problem
from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import found


def _exactly_1(value: object) -> object:
    """Refuse all but the integer 1; a literal of pydantic also takes true and 1.0, strict or not."""
    if type(value) is not int or value != 1:
        raise problem(f"must be 1, found {found(value)}")
    return value


class VerifyOptions(Spec):
    """What is verified. Bytes, names and the tokenizer always are."""

    outputs: Annotated[
        bool, Field(description="Reload the result and compare its outputs; one model in memory at a time.")
    ] = True
    lens: Annotated[
        bool,
        Field(
            description="Compare in float64, module by module, and beside the noise of the own dtype; two models in memory."
        ),
    ] = False
    signal: Annotated[
        bool,
        Field(description="Measure how the signal travels through the blocks, before and after; two models in memory."),
    ] = False
    first_step: Annotated[
        bool,
        Field(
            description="Take the first step of training on a copy: old gradients, new parameters, and a forecast of the change."
        ),
    ] = False
    paged: Annotated[
        Literal["auto"] | bool,
        Field(
            description="Read parameters from the files as the forward asks for them, for outputs and lens: auto where the"
            " models do not fit into the memory that is free."
        ),
    ] = "auto"


class Recipe(Spec):
    """A graftkit recipe: operations on a pretrained checkpoint, in order."""

    version: Annotated[Literal[1], BeforeValidator(_exactly_1), Field(description="The version of the recipe format.")]
    base_model: Annotated[
        PathText,
        Field(
            description="The source checkpoint: a hub id, a local folder, or a URL of a store, such as s3://bucket/model."
        ),
    ]
    revision: Annotated[Text | None, Field(description="Branch, tag or commit of a hub id.")] = None
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Seeds everything that is sampled.")] = 0
    allow_nonfinite: Annotated[bool, Field(description="Accept weights that hold NaN or infinity.")] = False
    unknown_tensors: Annotated[
        Literal["refuse", "carry"],
        Field(
            description="Tensors that no class of the config loads: refuse the checkpoint, or carry them over byte for byte."
        ),
    ] = "refuse"
    operations: Annotated[
        ListOf[Operation],
        Field(min_length=1, json_schema_extra={"minItems": 1}, description="What to do, in this order."),
    ]
    verify: Annotated[VerifyOptions, Field(description="What is verified before the output appears.")] = (
        VerifyOptions.model_construct()
    )
    output_format: Annotated[
        Literal["safetensors", "dcp"],
        Field(
            description="How the weights are written: as transformers loads them, or as a folder of torch.distributed.checkpoint for"
            " trainers that start from one."
        ),
    ] = "safetensors"
    output: Annotated[OutputText, Field(description="The folder to write, or a URL of a store; it must not exist.")]

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a second adapter, changes of the base that an adapter was made for, and a conversion of what is open already."""
        operations = data.get("operations")
        made = False
        for place, item in enumerate(operations if isinstance(operations, list | tuple) else ()):
            op = item.get("op") if isinstance(item, Mapping) else getattr(item, "op", None)
            if not isinstance(op, str):
                continue
            if place and op == "convert":
                yield ("operations", place), "stands first: what comes before it could not open what it converts"
            if made and op in MAKE_ADAPTERS:
                yield ("operations", place), "a recipe makes one adapter; put the second into a recipe of its own"
            elif made:
                yield ("operations", place), f"{op} changes the base of the adapter made before it; put it before that"
            made = made or op in MAKE_ADAPTERS
            if op in MAKE_ADAPTERS and data.get("output_format") == "dcp":
                yield ("output_format",), f"{op} makes an adapter, which only peft's own format holds; leave it out"
