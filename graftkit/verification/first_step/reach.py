"""Which new parameters the task's loss reaches within three optimiser steps; one that it does not is dead.

A zero factor behind another parameter is sound: a zero head moves at step 0 and lets the backbone move at step 1, and a
LoRA whose B is zero moves B before A. Two zero factors that wait for each other never move, and are found here.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from graftkit.architecture.axis_maps import AxisMaps
from graftkit.running.loss import loss_of
from graftkit.verification.first_step.task import gradients

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.probes import Probe

STEPS, LEARNING_RATE = 3, 1e-3

#: What is new of a parameter: some rows, the slices that come from none of the source, or (None) every element.
New = Sequence[int] | AxisMaps | None


def first_moves(
    model: PreTrainedModel, batch: Probe, extra_inputs: frozenset[str], new: Mapping[str, New]
) -> dict[str, int | None]:
    """Name -> the step at which a new parameter first has a gradient, None where it has none in three steps.

    ``new`` says of parameters what is new of each. Rows are reported one by one as ``name[row]``, other new slices together as
    ``name[new]``. The model is left as it was.
    """
    import torch

    trained = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(trained.parameters(), LEARNING_RATE)
    waiting = {label: (name, part) for name, parts in new.items() for label, part in _labelled(name, parts)}
    moves: dict[str, int | None] = dict.fromkeys(waiting)
    for step in range(STEPS):
        found = gradients(trained, loss_of(trained, batch, extra_inputs))
        moved = [label for label, (name, part) in waiting.items() if name in found and bool(part(found[name]).any())]
        for label in moved:
            moves[label] = step
            del waiting[label]
        if not waiting:
            break
        for name, parameter in trained.named_parameters():
            parameter.grad = found.get(name)
        optimiser.step()
    return moves


def _labelled(name: str, new: New) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """What is reported of one parameter, each with what takes that part out of its gradient."""
    if new is None:
        yield name, lambda gradient: gradient
    elif isinstance(new, AxisMaps):
        yield f"{name}[new]", new.only_new
    else:
        yield from ((f"{name}[{row}]", operator.itemgetter(row)) for row in new)
