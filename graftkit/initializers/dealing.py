"""Examples with several labels each, dealt to folds and to what is held out so that every label has its share everywhere.

Source: iterative stratification, Sechidis, Tsoumakas and Vlahavas 2011: the rarest label is dealt first, each of its examples to
where that label still lacks most.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Where an example is that is only measured on.
HELD_OUT = -1


def deal_sets(
    sets: Sequence[Collection[int]], classes: int, held_out: float, folds: int, generator: torch.Generator
) -> Tensor:
    """A fold for each example, :data:`HELD_OUT` for what is only measured on; ``sets`` are the labels of each.

    Of each label one example at least is held out, and two are not. *Shape:* int64 ``(n,)``.
    """
    import torch

    found = torch.full((len(sets),), HELD_OUT - 1, dtype=torch.int64)
    of_label: list[list[int]] = [[] for _ in range(classes + 1)]
    for index in torch.randperm(len(sets), generator=generator).tolist():
        for label in sets[index] or (classes,):  # what has no label at all is dealt as if that were one
            of_label[label].append(index)
    lack = torch.stack([_shares(len(members), held_out, folds) for members in of_label])
    for label in sorted(range(classes + 1), key=lambda one: len(of_label[one])):
        for index in of_label[label]:
            if found[index] < HELD_OUT:
                # where this label lacks most, then where all do
                place = int((lack[label] + 1e-6 * lack.sum(0) / (1 + lack.abs().sum())).argmax())
                lack[list(sets[index]) or [classes], place] -= 1
                found[index] = place - 1
    return found


def _shares(count: int, held_out: float, folds: int) -> Tensor:
    """How many examples of a label are wanted held out, and in each fold. *Shape:* ``(1 + folds,)``."""
    import torch

    out = min(max(held_out * count, 1.0), max(count - 2.0, 0.0))
    return torch.tensor([out, *[(count - out) / folds] * folds], dtype=torch.float64)


def badly_dealt(
    sets: Sequence[Collection[int]], classes: int, dealt: Tensor, *, against_rest: bool = True
) -> list[int]:
    """The labels that nothing held out has, or only one fold: they cannot be fitted and measured.

    With ``against_rest`` also those that everything has outside one fold.
    """
    import torch

    onehot = torch.zeros(len(sets), classes, dtype=torch.bool)
    for index, labels in enumerate(sets):
        onehot[index, list(labels)] = True
    bad = []
    for label in range(classes):
        with_it, without = dealt[onehot[:, label]], dealt[~onehot[:, label]]
        parts = (with_it, without) if against_rest else (with_it,)
        spread = [len(set(part[part > HELD_OUT].tolist())) for part in parts]
        if not bool((with_it == HELD_OUT).any()) or min(spread) < 2:
            bad.append(label)
    return bad
