"""What an adapter may stand behind: combinations that never train are refused, one that looks as if it did not is explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import RecipeError, printable
from graftkit.operations.base import Outcome
from graftkit.recipe import Reinit, ReplaceHead, Spec, Zeros
from graftkit.recipe.add_lora import AddLora
from graftkit.recipe.head_schemes import HeadZeros

SOUND = (
    "a zero head in front of a LoRA whose B is zero is sound: the head has a gradient at step 0, B at step 1, A at step 2"
)


def combined(specs: Sequence[Spec], source: Checkpoint, earlier: Sequence[Outcome], outcome: Outcome) -> Outcome:
    """The outcome of the last of ``specs`` behind the ``earlier`` ones, with a note where their combination needs one.

    Raises:
        RecipeError: DoRA on weights that an earlier operation made zero.
    """
    *before, spec = specs
    if not isinstance(spec, AddLora) or outcome.adapter is None:
        return outcome
    if spec.use_dora:
        adapted = [name for name in outcome.adapter.tensors if ".lora_magnitude_vector" in name]
        for name in _zeroed(before, source, earlier):
            if any(tensor.startswith(f"base_model.model.{name.removesuffix('.weight')}.") for tensor in adapted):
                raise RecipeError(
                    f"operations.{len(before)}: add_lora: use_dora divides each row by its norm, and {printable(name)!r} is"
                    " made zero before it: every output would be NaN; leave use_dora out, or start that weight elsewhere"
                )
    zero_head = any(isinstance(one, ReplaceHead) and isinstance(one.init, HeadZeros) for one in before)
    if zero_head and spec.init_lora_weights in (True, "gaussian"):
        return replace(outcome, notes=(*outcome.notes, SOUND))
    return outcome


def _zeroed(specs: Sequence[Spec], source: Checkpoint, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Names on disk of the tensors that a reinit made zero."""
    held = source
    for spec, outcome in zip(specs, outcomes, strict=True):
        if isinstance(spec, Reinit) and isinstance(spec.init, Zeros):
            yield from (n for n, tensor in outcome.checkpoint.tensors.items() if held.tensors.get(n) is not tensor)
        held = outcome.checkpoint
