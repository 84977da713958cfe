"""Combinations that would never train are refused, and one that only looks as if it would not is explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from graftkit.architecture.head import Head
from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.zero_flow import never_learning
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import chunks
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.tensors import Zeros as ZeroTensor
from graftkit.errors import RecipeError, few, printable
from graftkit.operations.base import Outcome
from graftkit.recipe import Reinit, ReplaceHead, Spec
from graftkit.recipe.add_lora import AddLora
from graftkit.recipe.head_schemes import HeadZeros
from graftkit.recipe.weight_schemes import is_zero

SOUND = "a zero head in front of a LoRA whose B is zero is sound: the head has a gradient at step 0, B at step 1, A at step 2"


def check_combination(
    specs: Sequence[Spec], source: Checkpoint, earlier: Sequence[Outcome], outcome: Outcome
) -> Outcome:
    """Check the last of ``specs`` together with the ``earlier`` ones; returns its outcome, with a note where the combination needs one.

    Raises:
        RecipeError: tensors made zero would never learn, or DoRA divides by the norms of weights made zero.
    """
    *before, spec = specs
    if isinstance(spec, Reinit) and is_zero(spec.init):
        _check_learning(specs, source, (*earlier, outcome))
    if not isinstance(spec, AddLora) or outcome.adapter is None:
        return outcome
    if spec.use_dora:
        adapted = [name for name in outcome.adapter.tensors if ".lora_magnitude_vector" in name]
        for name in _zero_now(earlier):
            if any(tensor.startswith(f"base_model.model.{name.removesuffix('.weight')}.") for tensor in adapted):
                raise RecipeError(
                    f"divides each row by its norm, and {printable(name)!r} is"
                    " made zero before it: every output would be NaN; leave use_dora out, or start that weight elsewhere"
                )
    zero_head = any(isinstance(one, ReplaceHead) and isinstance(one.init, HeadZeros) for one in before)
    if zero_head and spec.init_lora_weights in (True, "gaussian"):
        return replace(outcome, notes=(*outcome.notes, SOUND))
    return outcome


def _check_learning(specs: Sequence[Spec], source: Checkpoint, outcomes: Sequence[Outcome]) -> None:
    """Refuse zeros that have each other as a factor of their gradients, or that stand where an activation has no slope."""
    result = outcomes[-1].checkpoint
    made = (name for name in _zeroed(specs, source, outcomes) if _holds_zeros(result.tensors[name]))
    blank = (name for name, tensor in result.tensors.items() if isinstance(tensor, ZeroTensor))
    zeros = list(dict.fromkeys((*made, *blank)))
    skeleton = build_skeleton(result.config)
    memory = {found.name for found in skeleton.memory_names(zeros).values() if not found.converted}
    stuck = never_learning(skeleton, memory)
    if stuck:
        raise RecipeError(
            f"from these zeros no gradient ever reaches {few(stuck)}; leave out one of"
            " those that wait for each other, or start it elsewhere",
            field="init",
        )


def _holds_zeros(tensor: LazyTensor) -> bool:
    """Whether it is zero for sure: a matrix that was asked to be, or a bias that its class starts at zero."""
    return isinstance(tensor, ZeroTensor) or (len(tensor.shape) < 2 and not any(map(any, chunks(tensor))))


def check_zero_factors(spec: ReplaceHead, head: Head) -> None:
    """Refuse a zero label projection behind zero matrices: each has the other as a factor of its gradient.

    Raises:
        RecipeError: both are zero.
    """
    inner = [tensor.name for tensor in head.tensors_of("inner") if len(tensor.shape) > 1]
    if inner and is_zero(spec.init) and is_zero(spec.inner_init):
        projection = head.tensors_of("projection")[0].name
        raise RecipeError(
            f"{printable(inner[0])!r} and {printable(projection)!r} would both be zero,"
            " and neither would ever have a gradient; leave inner_init out",
            field="inner_init",
        )


def _zero_now(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Names in memory of the tensors that operations made zero and that are so behind the last of them."""
    result = outcomes[-1].checkpoint if outcomes else None
    names = [name for name, tensor in result.tensors.items() if isinstance(tensor, ZeroTensor)] if result else []
    if result and names:
        yield from (found.name for found in build_skeleton(result.config).memory_names(names).values())


def _zeroed(specs: Sequence[Spec], source: Checkpoint, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Names on disk of the tensors that a reinit made zero."""
    held = source
    for spec, outcome in zip(specs, outcomes, strict=True):
        if isinstance(spec, Reinit) and is_zero(spec.init):
            yield from (n for n, tensor in outcome.checkpoint.tensors.items() if held.tensors.get(n) is not tensor)
        held = outcome.checkpoint
