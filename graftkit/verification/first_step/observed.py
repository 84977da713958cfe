"""What of a model's outputs a loss is taken of and a step is judged by: logits, or hidden states where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graftkit.architecture.correspondence import Correspondence
from graftkit.errors import VerificationFailed
from graftkit.running.probes import Probe

#: Logits over token ids; over labels; over places of a text (question answering); one number; hidden states.
Kind = Literal["ids", "labels", "places", "number", "states"]

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

    def values(self, outputs: Mapping[str, Any], batch: Probe, ids: int | None = None) -> Any:
        """``(places, width)``: the unmasked places of the old texts, and the first ``ids`` columns."""
        import torch

        if self.kind == "places":
            return torch.cat([outputs[name] for name in ANSWERS if name in outputs])
        value = self._value(outputs)
        if self.kind == "ids":
            length = min(value.shape[1], batch.ids.shape[1])
            return value[:, :length, :ids][batch.mask[:, :length].bool()]
        if value.ndim > 2 and 1 < value.shape[1] <= batch.mask.shape[1]:
            return value[batch.mask[:, : value.shape[1]].bool()]
        return value.reshape(-1, value.shape[-1]) if value.ndim > 1 else value.reshape(-1, 1)

    def _value(self, outputs: Mapping[str, Any]) -> Any:
        value = outputs[self.name]
        return value[-1] if isinstance(value, tuple | list) else value


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


def old_ids(seen: Observed, outputs: Mapping[str, Any], correspondence: Correspondence) -> int | None:
    """How many old ids the logits are a distribution over; None where they are no distribution over ids."""
    if seen.kind != "ids":
        return None
    return int(outputs["logits"].shape[-1]) if correspondence.live is None else correspondence.live
