"""A value head: one number for each token, in a file of its own beside a language model that stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graftkit.architecture.accounting import account
from graftkit.architecture.head import MAPPINGS
from graftkit.architecture.last_hidden import last_hidden_width
from graftkit.architecture.parameters import text_value
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import computed
from graftkit.checkpoint.tensors import LazyTensor, Zeros
from graftkit.checkpoint.value_head import BIAS, FILE, WEIGHT, value_head_shapes
from graftkit.errors import InputRejected, RecipeError, few, printable
from graftkit.initializers.fans import LINEAR
from graftkit.initializers.make import ModelFacts, make
from graftkit.initializers.seeding import generator_for
from graftkit.operations.base import Context, Outcome
from graftkit.recipe import ReplaceHead
from graftkit.recipe.head_schemes import HeadNormal
from graftkit.recipe.weight_schemes import WeightNormal
from graftkit.verification.heads.value_head import ValueHeadCheck
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass

if TYPE_CHECKING:
    from torch import Tensor

#: TRL's own class holds its value head in float32, whatever the model's dtype is.
DTYPE = "F32"

#: What TRL looks for in a language model; LLaMA-Factory wraps the model in TRL's class.
LM_HEADS = ("lm_head", "embed_out")


def add_value_head(spec: ReplaceHead, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Write a value head beside the checkpoint, whose every file stays as it is.

    Raises:
        RecipeError: the checkpoint is a model in memory, which has no files beside it.
        InputRejected: trainers would not load a value head on this class.
    """
    if checkpoint.in_memory:
        raise RecipeError(
            f"a value head is the file {FILE} beside a model, and a model in memory has no files; apply the recipe to a folder",
            field="task",
        )
    skeleton = account(checkpoint).skeleton
    _check_class(checkpoint, skeleton)
    width = _width(checkpoint, skeleton)
    result = checkpoint.with_value_head(_tensors(spec, skeleton, width, (context.seed, context.place)))
    return Outcome(
        result,
        Promise(PromiseClass.BITWISE, "logits and hidden states (the values are those of a new head)", EVERY_INPUT),
        tuple(_notes(checkpoint, skeleton)),
        checks=(ValueHeadCheck(width, zero=not isinstance(spec.init, HeadNormal)),),
    )


def _check_class(checkpoint: Checkpoint, skeleton: Skeleton) -> None:
    """Refuse what AutoModelForCausalLM does not load: trainers put their value heads on what it gives."""
    from transformers.models.auto import modeling_auto

    name = getattr(modeling_auto, MAPPINGS["causal_lm"]).get(checkpoint.config["model_type"]) or ()
    names = (name,) if isinstance(name, str) else tuple(name)
    if skeleton.architecture not in names:
        why = f", which gives {names[0]} here" if names else ""
        raise InputRejected(
            f"{checkpoint.name}: a value head stands on what AutoModelForCausalLM loads{why}; this is {skeleton.architecture}"
        )


def _width(checkpoint: Checkpoint, skeleton: Skeleton) -> int:
    """The width of the last hidden state, which is what TRL makes its value head of.

    Raises:
        InputRejected: TRL would make another one, or the class gives no hidden states.
    """
    config, found = skeleton.model.config, last_hidden_width(skeleton)
    asked = getattr(config, "word_embed_proj_dim", None) or getattr(config, "hidden_size", None)
    if found is None or found != asked:
        given = f"hidden states that are {found} wide" if found else "no hidden states that could be measured"
        theirs = (
            f"makes a value head for {asked} by the config"
            if asked
            else "looks for hidden_size in the config, which has none"
        )
        raise InputRejected(f"{checkpoint.name}: {skeleton.architecture} gives {given}, and TRL {theirs}")
    return found


def _tensors(spec: ReplaceHead, skeleton: Skeleton, width: int, seed: tuple[int, int]) -> dict[str, LazyTensor]:
    shapes = value_head_shapes(width)
    tensors: dict[str, LazyTensor] = {name: Zeros(DTYPE, shape) for name, shape in shapes.items()}
    if isinstance(spec.init, HeadNormal):
        scheme = WeightNormal(std=spec.init.std)
        std = text_value(skeleton, "initializer_range", "init_std")
        facts = ModelFacts(float(std), width=width, readout=True) if std else ModelFacts(width=width, readout=True)

        def weight() -> Tensor:
            import torch

            return make(scheme, shapes[WEIGHT], torch.float32, LINEAR, generator_for(*seed, WEIGHT), facts)

        tensors[WEIGHT] = computed(DTYPE, shapes[WEIGHT], weight)
    return tensors


def _notes(checkpoint: Checkpoint, skeleton: Skeleton) -> Iterator[str]:
    yield f"{FILE}: {WEIGHT} and {BIAS}, beside the model; transformers does not read it, LLaMA-Factory does"
    if checkpoint.value_head:
        yield f"the old value head is replaced: {few(checkpoint.value_head)}"
    if not any(hasattr(skeleton.model, name) for name in LM_HEADS):
        yield (
            f"{printable(skeleton.architecture)} has neither {' nor '.join(LM_HEADS)}; TRL's value-head models of 0.2x, which"
            " LLaMA-Factory uses, refuse it"
        )
