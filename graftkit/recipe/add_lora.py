"""add_lora: a peft LoRA adapter beside the base. Fields and meanings are those of ``peft.LoraConfig``."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from graftkit.recipe.adapter_fields import FILLED, Pattern, Saved, Targets, Values, as_tuple, none_if_empty
from graftkit.recipe.fields import FrozenMapping, ListOf, PathText, Text
from graftkit.recipe.spec import Spec, problem
from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import did_you_mean, found, shown

#: Starts with B = 0 (or A = 0): the weights of the base are neither read nor changed.
ZERO_INITS = ("gaussian", "mica", "eva")

#: Starts from a part of each weight, which is taken out of the base, or given back by the offset form (``exact``).
SPECTRAL_INITS = ("pissa", "olora", "orthogonal", "corda", "lora_ga", "loftq")

#: Starts from what examples give: activations or gradients.
DATA_INITS = ("eva", "corda", "lora_ga")

#: Where peft keeps the settings of each of these.
DATA_CONFIGS = {kind: f"{kind}_config" for kind in DATA_INITS}

#: Fields of peft's LoraConfig that cannot stand in an adapter that starts as the identity and is loaded from a file.
UNSUITABLE: Mapping[str, str] = {
    "layer_replication": "repeats layers, which makes another model of the base",
    "alora_invocation_tokens": "lets the adapter act behind those tokens alone, which no check can see",
    "monteclora_config": "samples from tensors that peft does not save",
    "kasa_config": "takes the smallest singular values out of the base at every load",
    "arrow_config": "routes between adapters that are trained already",
    "velora_config": "changes gradients and is made by peft when training starts",
    "runtime_config": "is for one process, and peft does not save it",
    "loftq_config": "has no effect: init_lora_weights is not loftq",
    "megatron_config": "is for Megatron's parallel layers, which transformers does not build",
}

_NITER = re.compile(r"pissa_niter_[0-9]+")


def _init(value: object) -> object:
    """Let ``true`` and the names of peft through."""
    if value is False:
        raise problem(
            "false starts from a random B, which changes what the model does; true starts from B = 0, as peft does"
        )
    if value is True:
        return value
    if not isinstance(value, str):
        raise problem(f"must be true or the name of an initialization, found {found(value)}")
    names = (*ZERO_INITS, *SPECTRAL_INITS)
    if value in names or _NITER.fullmatch(value):
        return value
    close = did_you_mean(value, [*names, "pissa_niter_16"])
    hint = f"did you mean {shown(close)}?" if close else f"it is true or one of: {', '.join(names)}, pissa_niter_16"
    raise problem(f"unknown value {shown(value)}; {hint}")


def _layers(value: object) -> object:
    """One index as a list of it."""
    return value if value == "new" else as_tuple(value)


class AddLora(Spec):
    """Make a LoRA adapter that starts as the identity, beside the base (Hu 2021)."""

    op: Literal["add_lora"] = "add_lora"
    r: Annotated[int, Field(ge=1, le=65536, description="The rank.")] = 8
    lora_alpha: Annotated[int, Field(ge=1, description="The update is scaled by lora_alpha / r.")] = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout in front of A, in training.")] = 0.0
    target_modules: Annotated[
        Targets, Field(description="all-linear; a list of names or globs; or a regular expression, as peft reads it.")
    ] = "all-linear"
    target_parameters: Annotated[
        ListOf[Text], Field(description="Parameters that are no module's, such as fused experts.")
    ] = ()
    exclude_modules: Annotated[ListOf[Text], Field(description="Names of modules to leave out.")] = ()
    init_lora_weights: Annotated[
        bool | str, BeforeValidator(_init), Field(description="true (B = 0) or a name that peft knows, such as pissa.")
    ] = True
    exact: Annotated[
        bool, Field(description="For inits that start from the weights: leave the base as it is, at twice the rank.")
    ] = False
    use_rslora: Annotated[bool, Field(description="Scale by lora_alpha / sqrt(r).")] = False
    use_dora: Annotated[bool, Field(description="Train magnitude and direction apart (DoRA).")] = False
    rank_pattern: Annotated[Pattern, Field(description="Ranks of some modules, by name or regular expression.")] = (
        FrozenMapping()
    )
    alpha_pattern: Annotated[Pattern, Field(description="Alphas of some modules, by name or regular expression.")] = (
        FrozenMapping()
    )
    layers_to_transform: Annotated[
        Literal["new"] | ListOf[Annotated[int, Field(ge=0)]] | None,
        BeforeValidator(_layers),
        Field(
            description="Indices of the layers that get an adapter, or new: those that this recipe inserts; null means all."
        ),
    ] = None
    layers_pattern: Annotated[Text | None, Field(description="Name of the list of layers, such as layers.")] = None
    modules_to_save: Annotated[
        Saved | None,
        AfterValidator(none_if_empty),
        Field(description="Modules trained whole; auto finds the head that the recipe or the base has."),
    ] = "auto"
    train_new_tokens: Annotated[
        bool, Field(description="Train the rows of the tokens that this recipe adds, input and output.")
    ] = True
    task_type: Annotated[Text | None, Field(description="As peft names it; null means that of the base's class.")] = (
        None
    )
    examples: Annotated[
        PathText | None,
        Field(
            description="Texts for eva, corda and lora_ga: a line each of a .txt, or text in .jsonl, .csv or .parquet."
        ),
    ] = None
    config: Annotated[
        Values, Field(description="Any other field of peft's LoraConfig; the installed peft checks it.")
    ] = FrozenMapping()

    @property
    def spectral(self) -> bool:
        """Whether the adapter starts from a part of each weight."""
        return str(self.init_lora_weights).partition("_niter_")[0] in SPECTRAL_INITS

    def plain(self) -> object:
        """Return the fields; null says something here, since the default is another."""
        written = self.plain_fields()
        return written if self.modules_to_save else {**written, "modules_to_save": None}

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse fields that another field makes meaningless."""
        init = data.get("init_lora_weights", True)
        kind = init.partition("_niter_")[0] if isinstance(init, str) else ""
        if data.get("exact") is True and kind not in SPECTRAL_INITS:
            yield ("exact",), f"has no effect: only {', '.join(SPECTRAL_INITS)} take something out of the base"
        if data.get("exact") is True and data.get("use_dora") is True:
            yield ("exact",), "cannot hold with use_dora: DoRA divides by the norm of what the two halves add up to"
        if data.get("examples") is not None and kind not in DATA_INITS:
            yield ("examples",), f"has no effect: only {', '.join(DATA_INITS)} look at examples"
        if kind in DATA_INITS and data.get("examples") is None:
            yield ("init_lora_weights",), f"{kind} starts from what texts give; name their file: examples: texts.txt"
        layers = data.get("layers_to_transform")
        if data.get("layers_pattern") is not None and layers is None:
            yield ("layers_pattern",), "has no effect without layers_to_transform"
        targets = data.get("target_modules")
        if layers is not None and isinstance(targets, str) and targets.lower() != "all-linear":
            yield ("layers_to_transform",), "cannot stand beside a regular expression; put the layers into it"
        yield from _unfit(data.get("config"), kind, cls.model_fields)


def _unfit(config: object, kind: str, own: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Refuse what stands under ``config`` and elsewhere as well, or cannot go into an adapter that is loaded from a file."""
    for name in config if isinstance(config, dict) else ():
        if name in own:
            yield ("config", name), "is a field of the operation; write it there"
        elif name in FILLED:
            yield ("config", name), "is filled in; leave it out"
        elif name in UNSUITABLE:
            yield ("config", name), UNSUITABLE[name]
        elif name in DATA_CONFIGS.values() and name != DATA_CONFIGS.get(kind):
            yield ("config", name), f"has no effect: init_lora_weights is not {name.removesuffix('_config')}"
