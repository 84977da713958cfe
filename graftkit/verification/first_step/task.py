"""What a model would be trained on: a batch of texts in which the new ids stand, and the loss of its kind of head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graftkit.running.inputs import feed
from graftkit.running.probes import Probe
from graftkit.verification.first_step.observed import Observed, observe

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


def loss_of(model: Any, batch: Probe, made: frozenset[str], ids: int | None = None) -> Any:
    """The mean loss of a batch, by what the model gives. ``ids`` restricts the softmax to the ids below it."""
    return loss_on(model(**feed(model, batch, made)), batch, generates=model.can_generate(), ids=ids)


def loss_on(outputs: Mapping[str, Any], batch: Probe, *, generates: bool, ids: int | None = None) -> Any:
    """As :func:`loss_of`, of outputs that are there already."""
    import torch

    seen = observe(outputs, batch)
    if seen.kind == "ids":
        logits = outputs["logits"]
        shift = 1 if generates else 0
        length = min(logits.shape[1], batch.ids.shape[1])
        targets, mask = batch.ids[:, shift:length], batch.mask[:, shift:length].bool()
        scores = logits[:, : length - shift, :ids].float()[mask]
        return torch.nn.functional.cross_entropy(scores, targets[mask])
    values = seen.values(outputs, batch)
    if seen.kind in ("labels", "places"):
        labels = torch.arange(len(values), device=values.device) % values.shape[-1]
        return torch.nn.functional.cross_entropy(values.float(), labels)
    if seen.kind == "number":
        wanted = torch.arange(len(values), device=values.device) % 2
        return torch.nn.functional.mse_loss(values[:, 0].float(), wanted.float())
    others = (Observed("states", name).values(outputs, batch) for name in seen.beside)
    return sum(_distance_to_noise(part) for part in (values, *others))


def _distance_to_noise(values: Any) -> Any:
    import torch

    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values.device)
    return torch.nn.functional.mse_loss(values.float(), noise) / 2


def name_of_loss(seen: Observed, *, generates: bool) -> str:
    """What :func:`loss_of` is, in words."""
    if seen.kind == "ids":
        return "next-token loss" if generates else "loss of naming each token in its place"
    names = " and ".join((seen.name, *seen.beside))
    return {
        "labels": "cross-entropy of labels given in turn",
        "places": "cross-entropy of places given in turn",
        "number": "squared error of numbers given in turn",
    }.get(seen.kind, f"half the mean squared distance of {names} to fixed noise, for want of logits")


def gradients(model: Any, loss: Any) -> Mapping[str, Any]:
    """The gradient of every trained parameter by name; a parameter that the loss does not reach is left out."""
    import torch

    trained = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    names, values = zip(*trained, strict=True)
    found = torch.autograd.grad(loss, values, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
