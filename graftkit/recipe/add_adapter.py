"""add_adapter: an adapter of any kind that peft makes, beside the base. Fields and meanings are those of peft's config class."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from graftkit.recipe.adapter_fields import FILLED, Saved, Targets, Values, none_if_empty
from graftkit.recipe.fields import FrozenMapping, Text
from graftkit.recipe.spec import Spec, problem
from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import found, shown, unknown

#: What base and adapter give together as peft initialises it by default, beside the base alone: the same bits in every
#: dtype, the same up to rounding, or something else. A test measures each.
STARTS: Mapping[str, Literal["bitwise", "rounded", "intentional"]] = {
    "ADALORA": "bitwise",
    "ADAMSS": "bitwise",
    "ADAPTION_PROMPT": "bitwise",
    "BEFT": "bitwise",
    "BOFT": "bitwise",
    "C3A": "intentional",
    "CARTRIDGE": "intentional",
    "CPT": "intentional",
    "DEFT": "rounded",
    "DELORA": "bitwise",
    "FOURIERFT": "intentional",
    "FROD": "rounded",
    "GLORA": "bitwise",
    "GRALORA": "bitwise",
    "HIRA": "bitwise",
    "HRA": "rounded",
    "IA3": "bitwise",
    "LILY": "bitwise",
    "LN_TUNING": "bitwise",
    "LOHA": "bitwise",
    "LOKR": "bitwise",
    "MISS": "bitwise",
    "OFT": "bitwise",
    "OSF": "rounded",
    "PEANUT": "bitwise",
    "PREFIX_TUNING": "intentional",
    "PROMPT_TUNING": "intentional",
    "PSOFT": "bitwise",
    "PVERA": "bitwise",
    "P_TUNING": "intentional",
    "RANDLORA": "bitwise",
    "ROAD": "bitwise",
    "SHADOW": "bitwise",
    "SHIRA": "bitwise",
    "SUPERTUNING": "bitwise",
    "TINYLORA": "bitwise",
    "TRAINABLE_TOKENS": "bitwise",
    "UNILORA": "intentional",
    "VBLORA": "intentional",
    "VERA": "bitwise",
    "WAVEFT": "bitwise",
}

#: Kinds that peft has and this operation does not make, and why.
REFUSED: Mapping[str, str] = {
    "LORA": "is what add_lora makes",
    "MULTITASK_PROMPT_TUNING": "takes the id of a task with every input, which no check can make up; make it with peft",
    "POLY": "takes the id of a task with every input, which no check can make up; make it with peft",
    "XLORA": "mixes adapters that are trained already; it has nothing to start from",
}

#: Fields of peft's configs that the operation has itself.
OWN = ("peft_type", "target_modules", "modules_to_save", "task_type")


def _kind(value: object) -> object:
    if not isinstance(value, str):
        raise problem(f"must be the name of a kind of adapter, such as IA3, found {found(value)}")
    if value in REFUSED:
        raise problem(f"{value} {REFUSED[value]}")
    if value not in STARTS:
        close = value.upper() if value.upper() in STARTS else value
        raise problem(unknown(f"unknown value {shown(value)}", close, STARTS, all_called="peft has"))
    return value


class AddAdapter(Spec):
    """Make an adapter of another kind than LoRA, initialised as peft does, beside the base."""

    op: Literal["add_adapter"] = "add_adapter"
    peft_type: Annotated[
        str, BeforeValidator(_kind), Field(description="peft's name of the kind, such as IA3, OFT, LOHA or VERA.")
    ]
    target_modules: Annotated[
        Targets | None,
        Field(description="As in add_lora; null means what peft chooses for the model's type, where it knows it."),
    ] = None
    modules_to_save: Annotated[
        Saved | None,
        AfterValidator(none_if_empty),
        Field(description="Modules trained whole; auto finds the head that the recipe or the base has."),
    ] = "auto"
    task_type: Annotated[Text | None, Field(description="As peft names it; null means that of the base's class.")] = (
        None
    )
    allow_change: Annotated[
        bool, Field(description="Let the adapter change what the model does from the start; reported as intentional.")
    ] = False
    config: Annotated[
        Values, Field(description="The fields of peft's config class for this kind; the installed peft checks them.")
    ] = FrozenMapping()

    def plain(self) -> object:
        """Return the fields; null says something here, since the default is another."""
        written = self.plain_fields()
        return written if self.modules_to_save else {**written, "modules_to_save": None}

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Ask for consent to a kind that does not start as the identity, and refuse fields that stand elsewhere."""
        kind = data.get("peft_type")
        if isinstance(kind, str) and STARTS.get(kind) == "intentional" and data.get("allow_change") is not True:
            yield ("peft_type",), f"{kind} changes the outputs from the start; say allow_change: true if that is meant"
        others = data.get("config")
        for name in others if isinstance(others, dict) else ():
            if name in OWN:
                yield ("config", name), "is a field of the operation; write it there"
            elif name in FILLED:
                yield ("config", name), "is filled in; leave it out"
