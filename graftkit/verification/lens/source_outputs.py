"""The source's outputs on one probe, in float64 and in its own dtype, as other runs are compared with them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.running.bits import equal
from graftkit.verification.comparison import Outputs, pieces, sum_of_squares, unmasked

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.running.probes import Probe


class SourceOutputs:
    """What the source gave on ``probe``.

    ``rows`` is the size of its vocabulary; ids are compared where the ``correspondence`` says so. A run's distribution is compared
    with that in the own dtype, or in :meth:`widely` with that in float64.
    """

    def __init__(
        self, probe: Probe, exact: Outputs, native: Outputs, rows: int, correspondence: Correspondence = IDENTITY
    ) -> None:
        self.wide = False
        self.probe, self.native, self._exact, self._ids = probe, native, exact, correspondence.ids
        self._correspondence = correspondence
        self.names = [name for name in observed(native, rows) if name in exact]
        self.has_ids = {name: native[name].shape[-1] == rows for name in self.names}
        self._whole = bool(probe.mask.all())
        self._references: dict[str, tuple[Tensor, Tensor]] = {}
        self._sizes: dict[str, tuple[float, float]] = {}
        self._summaries: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._positions: dict[str, tuple[Tensor, Tensor]] = {}

    def widely(self) -> SourceOutputs:
        """The same, for runs in float64."""
        found = copy.copy(self)
        found.wide, found._summaries = True, {}  # noqa: SLF001 - its own
        return found

    def pair(self, name: str, found: Outputs, *, of_source: bool = False) -> tuple[Tensor, Tensor, Tensor] | None:
        """Float64, own dtype, and the run's, each ``(n, width)``: unmasked positions and corresponding ids; None where shapes differ.

        ``of_source`` says that the run is the source's, so that its ids are the source's.
        """
        if name not in found or not self._comparable(name, found[name], of_source=of_source):
            return None
        if name not in self._references:
            self._references[name] = self._of_source(self._exact[name], name), self._of_source(self.native[name], name)
        truth, old = self._references[name]
        new = self._known(name, found[name], truth, old)
        if new is None:
            new = self._of_source(found[name], name) if of_source else self._of_result(found[name], name)
            (truth, _), (old, new) = (self._correspondence.channels(one, new) for one in (truth, old))
        return (truth, old, new) if new.shape == old.shape else None

    def _comparable(self, name: str, new: Tensor, *, of_source: bool) -> bool:
        """Whether ``new`` has the same places and every id: a classifier's logits stand at no place and over no ids."""
        enough = True
        if self._ids is not None and self.has_ids[name]:
            enough = new.shape[-1] >= (self._ids.source if of_source or new is self.native[name] else self._ids.result)
        return bool(new.shape[:-1] == self.native[name].shape[:-1] and enough)

    def _known(self, name: str, new: Tensor, truth: Tensor, old: Tensor) -> Tensor | None:
        """The places of the reference where the whole of ``new`` equals it, so that its own need not be taken; else None."""
        if new is self.native[name]:
            return old
        reference = self._exact[name] if self.wide else self.native[name]
        return (truth if self.wide else old) if equal(reference, new) else None

    def _of_source(self, value: Tensor, name: str) -> Tensor:
        value = self._places(value)
        return value if self._ids is None or not self.has_ids[name] else self._ids.of_source(value)

    def _of_result(self, value: Tensor, name: str) -> Tensor:
        value = self._places(value)
        return value if self._ids is None or not self.has_ids[name] else self._ids.of_result(value)

    def _places(self, value: Tensor) -> Tensor:
        value = value if self._whole else unmasked(value, self.probe)
        return value.reshape(-1, value.shape[-1])

    def sizes(self, name: str, truth: Tensor, old: Tensor) -> tuple[float, float]:
        """The summed squares of the source in float64, and of its error in its own dtype."""
        if name not in self._sizes:
            pairs = zip(pieces(truth), pieces(old), strict=True)
            squares = [(sum_of_squares(a), sum_of_squares(b - a)) for a, b in pairs]
            self._sizes[name] = sum(size for size, _ in squares), sum(own for _, own in squares)
        return self._sizes[name]

    def summary(self, name: str, old: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(n,)`` log-sum-exp, top-1 id and its margin of the source's logits ``old``."""
        if name not in self._summaries:
            found = [(p.logsumexp(-1), *p.topk(min(2, p.shape[-1]), -1)) for p in pieces(old)]
            sums, top, ids = (torch.cat(values) for values in zip(*found, strict=True))
            self._summaries[name] = sums, ids[:, 0], top[:, 0] - top[:, -1]
        return self._summaries[name]

    def positions(self, name: str) -> tuple[Tensor, Tensor]:
        """``(n,)`` row and place in the sequence of each position."""
        if name not in self._positions:
            self._positions[name] = self._row_and_place(name)
        return self._positions[name]

    def _row_and_place(self, name: str) -> tuple[Tensor, Tensor]:
        shape = self.native[name].shape
        batch, length = shape[:2] if len(shape) > 2 else (shape[0], 1)
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
