"""The loss that a model's outputs are trained on: what of them it is taken of, as a mean over a batch or text by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from graftkit.errors import VerificationFailed
from graftkit.running.inputs import feed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.running.probes import Probe

#: Logits over token ids; over labels; over places of a text (question answering); one number; hidden states.
Kind = Literal["ids", "labels", "places", "number", "states"]

#: The columns of logits over ids that old ids have: a slice where they come first, else their numbers, ascending; None for all.
Columns: TypeAlias = "slice | Tensor | None"

#: Where each side of an answer begins and ends.
ANSWERS = ("start_logits", "end_logits")


@dataclass(frozen=True, slots=True)
class Observed:
    """One output, by ``name``, of one ``kind``; ``beside`` are further outputs that the loss has to reach: pooled states, say."""

    kind: Kind
    name: str
    beside: tuple[str, ...] = ()

    @property
    def distributions(self) -> bool:
        """Whether its rows are logits of distributions, so that a change is a KL; else it is relative to the size."""
        return self.kind in ("ids", "labels", "places")

    def values(self, outputs: Mapping[str, Any], batch: Probe, ids: Columns = None) -> Tensor:
        """``(places, width)``: the unmasked places of the old texts, and the columns ``ids``."""
        import torch

        if self.kind == "places":
            return torch.cat([outputs[name] for name in ANSWERS if name in outputs])
        value = self._value(outputs)
        if self.kind == "ids":
            length = min(value.shape[1], batch.ids.shape[1])
            return over_columns(value[:, :length], ids)[batch.mask[:, :length].bool()]
        if value.ndim > 2 and 1 < value.shape[1] <= batch.mask.shape[1]:
            return value[batch.mask[:, : value.shape[1]].bool()]
        return value.reshape(-1, value.shape[-1]) if value.ndim > 1 else value.reshape(-1, 1)

    def _value(self, outputs: Mapping[str, Any]) -> Tensor:
        value: Any = outputs[self.name]
        found: Tensor = value[-1] if isinstance(value, tuple | list) else value
        return found


def observe(outputs: Mapping[str, Any], batch: Probe) -> Observed:
    """What is looked at of these outputs.

    Raises:
        VerificationFailed: there is no tensor among them.
    """
    import torch

    if any(name in outputs for name in ANSWERS):
        return Observed("places", ANSWERS[0])
    logits = outputs.get("logits")
    if isinstance(logits, torch.Tensor):
        if logits.ndim == 3 and logits.shape[-1] > int(batch.ids.max()) and batch.ids.shape[1] > 1:
            return Observed("ids", "logits")
        return Observed("labels" if logits.ndim > 1 and logits.shape[-1] > 1 else "number", "logits")
    floating = {n: v for n, v in outputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    names = [name for name in floating if "hidden_states" not in name]
    last = [name for name in names if name.endswith("last_hidden_state")]
    if last or names:
        first = (last or names)[0]
        return Observed("states", first, tuple(name for name in names if name != first))
    if outputs.get("hidden_states"):
        return Observed("states", "hidden_states")
    raise VerificationFailed("first step: the forward gives no tensor that a loss could be taken of")


def old_columns(seen: Observed, drawn: Sequence[int] | None) -> Columns:
    """The ids ``drawn`` that the logits are a distribution over; None for all, and where they are no distribution over ids."""
    import torch

    if seen.kind != "ids" or drawn is None:
        return None
    return slice(len(drawn)) if isinstance(drawn, range) else torch.tensor(drawn)


def over_columns(values: Tensor, ids: Columns) -> Tensor:
    """The columns ``ids`` of logits over ids."""
    return values if ids is None else values[..., ids]


def loss_of(model: PreTrainedModel, batch: Probe, extra_inputs: frozenset[str], ids: Columns = None) -> Tensor:
    """The mean loss of a batch, by what the model gives. ``ids`` restricts the softmax to these."""
    return loss_on(model(**feed(model, batch, extra_inputs)), batch, generates=model.can_generate(), ids=ids)


def loss_on(outputs: Mapping[str, Any], batch: Probe, *, generates: bool, ids: Columns = None) -> Tensor:
    """As :func:`loss_of`, of outputs that are there already."""
    import torch

    seen = observe(outputs, batch)
    if seen.kind == "ids":
        scores, targets, mask = _targets(outputs["logits"], batch, generates=generates)
        wanted = torch.searchsorted(ids, targets[mask]) if isinstance(ids, torch.Tensor) else targets[mask]
        return torch.nn.functional.cross_entropy(over_columns(scores, ids).float()[mask], wanted)
    values = seen.values(outputs, batch)
    if seen.kind in ("labels", "places"):
        labels = torch.arange(len(values), device=values.device) % values.shape[-1]
        return torch.nn.functional.cross_entropy(values.float(), labels)
    if seen.kind == "number":
        numbers = torch.arange(len(values), device=values.device) % 2
        return torch.nn.functional.mse_loss(values[:, 0].float(), numbers.float())
    others = (Observed("states", name).values(outputs, batch) for name in seen.beside)
    return sum((_distance_to_noise(part) for part in others), start=_distance_to_noise(values))


def losses_of_texts(outputs: Mapping[str, Any], batch: Probe, *, generates: bool) -> tuple[Tensor, str]:
    """``(texts,)`` a loss of each text in float64 that no other text of the batch has a part in, and its name.

    Labels given in turn or noise would depend on a text's place in the batch, so that without ids it is the size of the output.
    """
    import torch

    logits = outputs.get("logits")
    if logits is not None and observe(outputs, batch).kind == "ids" and logits.shape[1] <= batch.ids.shape[1]:
        scores, targets, mask = _targets(logits, batch, generates=generates)
        terms = torch.nn.functional.cross_entropy(scores.double().transpose(1, 2), targets, reduction="none") * mask
        return terms.sum(1) / mask.sum(1).clamp(min=1), name_of_loss(Observed("ids", "logits"), generates=generates)
    stream = next((v for k, v in outputs.items() if "last_hidden_state" in k), None)
    stream = stream if stream is not None else next(v for v in outputs.values() if isinstance(v, torch.Tensor))
    halves: Tensor = stream.double().square().flatten(1).mean(1) / 2
    return halves, "half the mean square of the output, for want of a loss"


def _targets(logits: Tensor, batch: Probe, *, generates: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``(texts, places, ids)``, the id wanted at each place, and which of them are text."""
    shift = 1 if generates else 0
    length = min(logits.shape[1], batch.ids.shape[1])
    return logits[:, : length - shift], batch.ids[:, shift:length], batch.mask[:, shift:length].bool()


def _distance_to_noise(values: Tensor) -> Tensor:
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
