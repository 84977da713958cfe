"""A small dense model and a small sparse one made of it: with which copies and zeros the second does what the first does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from graftkit.architecture.embeddings import INPUT, embedding_of
from graftkit.architecture.skeleton import Skeleton, build_config, model_class, quiet
from graftkit.operations.experts.sources import Copy, New, Way, built
from graftkit.operations.widths.trial import ROWS, TOKENS, random_model
from graftkit.running.float64 import float64
from graftkit.running.forward import outputs_of, run, undisturbed
from graftkit.running.inputs import find_inputs
from graftkit.running.probes import Probe
from graftkit.verification.lens.floor import measure_floor
from graftkit.verification.lens.gap import gap

if TYPE_CHECKING:
    from torch import Tensor


class Trial:
    """A small random dense model with its outputs in float64, beside which sparse ones are run."""

    def __init__(self, config: Mapping[str, Any], dense: Skeleton) -> None:
        with undisturbed():
            model = random_model(config, dense.architecture, 0)
            table = embedding_of(model, INPUT)
            rows = 2 if table is None else len(table.weight)
            ids = torch.randint(rows // 8, rows // 2, (ROWS, TOKENS), generator=torch.Generator().manual_seed(2))
            self._probe = Probe("trial", ids, torch.ones_like(ids))
            self._extra, _ = find_inputs(model, lambda tried: run(model, self._probe, tried))
            self.threshold = measure_floor(model, self._probe, self._extra).threshold
            with float64(model):
                self._expected = outputs_of(model, self._probe, self._extra)
            self._state = model.state_dict()

    def distance(
        self, sparse: Skeleton, shapes: Mapping[str, tuple[int, ...]], ways: Mapping[str, Way], num_experts: int
    ) -> float:
        """How far the outputs of the sparse class lie from the dense one's, relative, when its tensors on disk are made in these ways.

        Infinite where it does not load or run.
        """
        state = {name: value for name, value in self._state.items() if name in sparse.shapes}
        state |= {name: self._made(name, shape, ways[name], num_experts) for name, shape in shapes.items()}
        with undisturbed(), quiet():
            try:
                model, info = model_class(sparse.architecture).from_pretrained(
                    None,
                    config=build_config(sparse.model.config.to_dict()),
                    state_dict=state,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
                if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
                    return math.inf
                with float64(model.eval()):
                    found = outputs_of(model, self._probe, self._extra)
            except Exception:  # noqa: BLE001 - a way may be one that the loader or the forward refuses
                return math.inf
        return _largest_gap(self._expected, found)

    def differs_from(self, other: Trial) -> bool:
        """Whether its outputs are further from those of another small dense model than that one's own arithmetic explains."""
        return _largest_gap(other._expected, self._expected) > other.threshold

    def _made(self, name: str, shape: tuple[int, ...], way: Way, num_experts: int) -> Tensor:
        if isinstance(way, New):
            generator = torch.Generator().manual_seed(len(name))
            return torch.zeros(shape) if way.by == "zero" else torch.randn(shape, generator=generator)
        return _copied(way, [self._state[one] for one in way.names(name)], num_experts)


def _largest_gap(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    pairs = [(value, after.get(name)) for name, value in before.items()]
    return max(gap(a, b) if b is not None and a.shape == b.shape else math.inf for a, b in pairs)


def _copied(way: Copy, parts: list[Tensor], num_experts: int) -> Tensor:
    made: Tensor = built(
        way, parts, num_experts, lambda one: one.T, torch.cat, lambda one, count: one.expand(count, *one.shape)
    )
    return made.contiguous()
