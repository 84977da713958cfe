"""The source's outputs on one probe, in float64 and in its own dtype, as other runs are compared with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from graftkit.verification.probes import Probe

#: Elements that are widened at a time.
CHUNK = 8 << 20

Outputs = Mapping[str, Any]


class Beside:
    """What the source gave on ``probe``.

    ``rows`` is the size of its vocabulary, ``kept`` the ids that are compared, None for all. With ``wide`` a run's distribution is
    compared with that in float64, else with that in the own dtype.
    """

    def __init__(
        self, probe: Probe, exact: Outputs, native: Outputs, rows: int, kept: Any = None, *, wide: bool = False
    ) -> None:
        self.wide = wide
        self.probe, self.native, self._exact, self._kept = probe, native, exact, kept
        self.names = [name for name in observed(native, rows) if name in exact]
        self.has_ids = {name: native[name].shape[-1] == rows for name in self.names}
        self._sizes: dict[str, tuple[float, float]] = {}
        self._summaries: dict[str, tuple[Any, Any, Any]] = {}

    def pair(self, name: str, found: Outputs) -> tuple[Any, Any, Any] | None:
        """Float64, own dtype, and the run's, each ``(n, width)``: unmasked positions and kept ids; None where shapes differ."""
        if name not in found:
            return None
        truth, old, new = (self._places(v[name], ids=self.has_ids[name]) for v in (self._exact, self.native, found))
        return (truth, old, new) if new.shape == old.shape else None

    def _places(self, value: Any, *, ids: bool) -> Any:
        if value.shape[:2] == self.probe.mask.shape:
            value = value[self.probe.mask.bool()]
        value = value.reshape(-1, value.shape[-1])
        return value if self._kept is None or not ids else value[:, self._kept]

    def sizes(self, name: str, truth: Any, old: Any) -> tuple[float, float]:
        """The summed squares of the source in float64, and of its error in its own dtype."""
        if name not in self._sizes:
            pairs = zip(pieces(truth), pieces(old), strict=True)
            squares = [(float(finite(a).square().sum()), float(finite(b - a).square().sum())) for a, b in pairs]
            self._sizes[name] = sum(size for size, _ in squares), sum(own for _, own in squares)
        return self._sizes[name]

    def summary(self, name: str, old: Any) -> tuple[Any, Any, Any]:
        """``(n,)`` log-sum-exp, top-1 id and its margin of the source's logits ``old``."""
        if name not in self._summaries:
            found = [(p.logsumexp(-1), *p.topk(min(2, p.shape[-1]), -1)) for p in pieces(old)]
            sums, top, ids = (torch.cat(values) for values in zip(*found, strict=True))
            self._summaries[name] = sums, ids[:, 0], top[:, 0] - top[:, -1]
        return self._summaries[name]

    def positions(self, name: str) -> tuple[Any, Any]:
        """``(n,)`` row and place in the sequence of each position."""
        batch, length = self.native[name].shape[:2]
        rows, places = torch.meshgrid(torch.arange(batch), torch.arange(length), indexing="ij")
        word = name.split()
        if word[0] == "step" and word[1] != "0":
            places = places + self.probe.ids.shape[1] - self.probe.steps + int(word[1]) - 1
        if (batch, length) == tuple(self.probe.mask.shape):
            seen = self.probe.mask.bool().cpu()
            return rows[seen], places[seen]
        return rows.flatten(), places.flatten()


def observed(outputs: Outputs, rows: int) -> list[str]:
    """The outputs that count: logits over the vocabulary; where there are none, the last hidden state of each call."""
    logits = [name for name, value in outputs.items() if "logits" in name and value.shape[-1] == rows]
    if logits:
        return logits
    last = [name for name in outputs if name.endswith("last_hidden_state")]
    return last or list(outputs)[-1:]


def pieces(values: Any) -> Iterator[Any]:
    """Rows of ``values`` in float64, a bounded piece at a time."""
    for piece in values.split(max(CHUNK // values.shape[-1], 1)):
        yield piece.double()


def finite(values: Any) -> Any:
    """Zero where an infinity (an id that the model masks) or NaN stands."""
    return values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
