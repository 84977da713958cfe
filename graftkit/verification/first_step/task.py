"""What a model would be trained on: a batch of texts in which the new ids stand; and the gradients of a loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.running.probes import Probe

#: More new ids than this are not put into the batch; they are said to be left out.
MOST_IDS = 256

#: Texts in the batch.
TEXTS = 4


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Attention by the plain formula: the fused kernels of a CPU have no derivative of a derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def with_ids(probe: Probe, ids: Sequence[int]) -> Probe:
    """``probe`` with each of ``ids`` written over a token of the texts, so that it is an input and a target.

    Each is put where another token follows it and one precedes it; texts are repeated until all have a place.
    """
    import torch

    rows, mask = probe.ids.clone(), probe.mask
    places = [(r, c) for r in range(len(rows)) for c in range(1, rows.shape[1] - 1, 2) if mask[r, c - 1 : c + 2].all()]
    copies = max(-(-len(ids) // max(len(places), 1)), 1)
    rows, mask = torch.cat([rows] * copies), torch.cat([mask] * copies)
    step = max(len(places) * copies // max(len(ids), 1), 1)
    for index, value in enumerate(ids):
        copy, place = divmod(index * step, max(len(places), 1))
        row, column = places[place]
        rows[copy * len(probe.ids) + row, column] = value
    return replace(probe, ids=rows, mask=mask)


def gradients(model: nn.Module, loss: Tensor) -> Mapping[str, Tensor]:
    """The gradient of every trained parameter by name; a parameter that the loss does not reach is left out."""
    import torch

    trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    names, values = zip(*trained, strict=True)
    found = torch.autograd.grad(loss, values, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
