"""Which new parameters the task's loss reaches within three optimiser steps; one that it does not is dead.

A zero factor behind another parameter is sound: a zero head moves at step 0 and lets the backbone move at step 1, and a
LoRA whose B is zero moves B before A. Two zero factors that wait for each other never move, and are found here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graftkit.running.loss import loss_of
from graftkit.verification.first_step.task import gradients

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.probes import Probe

STEPS, LEARNING_RATE = 3, 1e-3


def first_moves(
    model: PreTrainedModel, batch: Probe, extra_inputs: frozenset[str], new: Mapping[str, Sequence[int] | None]
) -> dict[str, int | None]:
    """Name -> the step at which a new parameter first has a gradient, None where it has none in three steps.

    ``new`` names parameters, each with its new rows, or None where every element is new. Rows are reported one by one
    as ``name[row]``. The model is left as it was.
    """
    import torch

    trained = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(trained.parameters(), LEARNING_RATE)
    waiting: dict[str, tuple[str, int | None]] = {}
    waiting |= {f"{name}[{row}]": (name, row) for name, rows in new.items() if rows is not None for row in rows}
    waiting |= {name: (name, None) for name, rows in new.items() if rows is None}
    moves: dict[str, int | None] = dict.fromkeys(waiting)
    for step in range(STEPS):
        found = gradients(trained, loss_of(trained, batch, extra_inputs))
        moved = [label for label, (name, row) in waiting.items() if _alive(found.get(name), row)]
        for label in moved:
            moves[label] = step
            del waiting[label]
        if not waiting:
            break
        for name, parameter in trained.named_parameters():
            parameter.grad = found.get(name)
        optimiser.step()
    return moves


def _alive(gradient: Tensor | None, row: int | None) -> bool:
    return gradient is not None and bool((gradient if row is None else gradient[row]).any())
