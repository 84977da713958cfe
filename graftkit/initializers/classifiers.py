"""Linear classifiers in closed form, fitted to features that are streamed: ridge, LDA, prototypes.

Everything comes from moments: counts, class sums and the d×d second moment, so memory does not grow with the number of
examples. The strength of ridge and LDA and the temperature of all three are chosen by the log loss of cross-validation.

*Shapes:* features ``(n, d)``, labels and folds ``(n,)``, weights ``(classes, d)``, biases ``(classes,)``; all float64.

Sources: LDA with shrinkage, Friedman 1989; prototypes as a linear classifier, Snell 2017; temperature, Guo 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Method = Literal["ridge", "lda", "prototype"]

#: ``(features, labels, folds)`` of a piece of the examples; called anew for each pass.
Pieces = Callable[[], Iterator[tuple["Tensor", "Tensor", "Tensor"]]]

#: Strengths that are tried: of ridge relative to the mean eigenvalue, of LDA the share of the scaled identity.
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "ridge": tuple(10.0 ** (k / 2) for k in range(-8, 7)),
    "lda": (*(10.0 ** (k / 2) for k in range(-8, 0)), 0.5, 1.0),
    "prototype": (0.0,),
}

#: Standard deviations of the logits that are tried as temperatures.
SPREADS = tuple(2.0 ** (k / 4) for k in range(-16, 29))


@dataclass(frozen=True, slots=True)
class Moments:
    """Counts ``(classes,)``, sums ``(classes, d)`` and second moment ``(d, d)`` of some examples."""

    counts: torch.Tensor
    sums: torch.Tensor
    second: torch.Tensor

    def without(self, other: Moments) -> Moments:
        """The moments of the other examples."""
        return Moments(self.counts - other.counts, self.sums - other.sums, self.second - other.second)


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted classifier; ``bias`` is None where none was asked for. ``loss`` is the log loss of cross-validation."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    strength: float
    temperature: float
    loss: float
    accuracy: float


def fit(method: Method, pieces: Pieces, classes: int, folds: int, *, bias: bool = True) -> Fit:
    """Fit ``method``; examples of fold ``-1`` are left out.

    Raises:
        ValueError: LDA and prototypes are nothing without a bias.
    """
    if not bias and method != "ridge":
        raise ValueError(f"{method} needs a bias")
    total = moments(pieces, classes, None)
    spread = _logit_spread(method, total, bias=bias)
    tried = _cross_validate(method, pieces, total, folds, spread, bias=bias)
    best = min(tried, key=lambda item: item[2])
    strength, temperature, loss, accuracy = best
    weight, intercept = next(_solutions(method, total, (strength,), bias=bias))
    weight = weight * temperature
    return Fit(weight, intercept * temperature if bias else None, strength, temperature, loss, accuracy)


def moments(pieces: Pieces, classes: int, fold: int | None) -> Moments:
    """Moments of one fold, or of all folds together. Labels are numbers, or rows of zeros and ones *(n, classes)*."""
    import torch

    found: Moments | None = None
    for features, labels, folds in pieces():
        chosen = folds == fold if fold is not None else folds >= 0
        x, own = features[chosen].double(), labels[chosen]
        onehot = (own if own.ndim > 1 else torch.nn.functional.one_hot(own, classes)).double()
        part = Moments(onehot.sum(0), onehot.T @ x, x.T @ x)
        found = part if found is None else Moments(*(a + b for a, b in zip(_parts(found), _parts(part), strict=True)))
    if found is None:
        raise ValueError("there are no examples")
    return found


def _parts(m: Moments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return m.counts, m.sums, m.second


def _solutions(
    method: Method, m: Moments, strengths: tuple[float, ...], *, bias: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias (zeros without one) for each strength, from one eigendecomposition."""
    import torch

    n, means = m.counts.sum(), m.sums / m.counts[:, None]
    if method == "prototype":
        yield 2 * means, -means.square().sum(-1)
        return
    if method == "lda":
        within = (m.second - (m.sums.T * (1 / m.counts)) @ m.sums) / n
        values, vectors = torch.linalg.eigh(within)
        values, floor = values.clamp(min=0), values.mean().clamp(min=1e-300)
        rotated = means @ vectors
        for share in strengths:
            weight = (rotated / ((1 - share) * values + share * floor)) @ vectors.T
            yield weight, -0.5 * (weight * means).sum(-1) + (m.counts / n).log()
        return
    centre = m.sums.sum(0) / n if bias else torch.zeros_like(m.sums[0])
    target = m.sums - m.counts[:, None] * centre
    values, vectors = torch.linalg.eigh(m.second - n * torch.outer(centre, centre))
    values, unit = values.clamp(min=0), values.mean().clamp(min=1e-300)
    for strength in strengths:
        weight = ((target @ vectors) / (values + strength * unit)) @ vectors.T
        intercept = m.counts / n - weight @ centre
        yield weight, intercept if bias else torch.zeros_like(intercept)


def _logit_spread(method: Method, m: Moments, *, bias: bool) -> float:
    """A typical standard deviation of the untempered logits: between the means of the classes, at a middle strength."""
    strengths = STRENGTHS[method]
    weight, intercept = next(_solutions(method, m, (strengths[len(strengths) // 2],), bias=bias))
    logits = (m.sums / m.counts[:, None]) @ weight.T + intercept
    return max(float((logits - logits.mean(-1, keepdim=True)).square().mean().sqrt()), 1e-300)


def _cross_validate(
    method: Method, pieces: Pieces, total: Moments, folds: int, spread: float, *, bias: bool
) -> list[tuple[float, float, float, float]]:
    """``(strength, temperature, log loss, accuracy)`` for each strength, over examples that its fit has not seen."""
    import torch

    strengths, classes = STRENGTHS[method], len(total.counts)
    temperatures = torch.tensor([s / spread for s in SPREADS], dtype=torch.float64)
    losses = torch.zeros(len(strengths), len(SPREADS), dtype=torch.float64)
    right = torch.zeros(len(strengths), dtype=torch.float64)
    for fold in range(folds):
        rest = total.without(moments(pieces, classes, fold))
        solutions = list(_solutions(method, rest, strengths, bias=bias))
        for features, labels, places in pieces():
            x, y = features[places == fold].double(), labels[places == fold]
            for index, (weight, intercept) in enumerate(solutions):
                logits = x @ weight.T + intercept
                right[index] += (logits.argmax(-1) == y).sum()
                for place, temperature in enumerate(temperatures):
                    losses[index, place] += torch.nn.functional.cross_entropy(logits * temperature, y, reduction="sum")
    n = float(total.counts.sum())
    return [
        (strength, *_refined(temperatures, losses[index] / n), float(right[index]) / n)
        for index, strength in enumerate(strengths)
    ]


def _refined(temperatures: torch.Tensor, losses: torch.Tensor) -> tuple[float, float]:
    """The minimum of the parabola through the best temperature and its neighbours, in the logarithm."""
    best = int(losses.argmin())
    if best in (0, len(losses) - 1):
        return float(temperatures[best]), float(losses[best])
    low, middle, high = (float(value) for value in losses[best - 1 : best + 2])
    bend = low - 2 * middle + high
    shift = 0.5 * (low - high) / bend if bend > 0 else 0.0
    step = math.log(float(temperatures[best + 1] / temperatures[best]))
    return float(temperatures[best]) * math.exp(shift * step), middle - 0.25 * (low - high) * shift


def deal(labels: list[int], held_out: float, folds: int, generator: torch.Generator) -> torch.Tensor:
    """A fold for each example, -1 for what is held out: of each label the same share, at least one, by lot.

    *Shape:* int64 ``(n,)``. Each label needs three examples: one is held out, and two folds get one at least.
    """
    import torch

    found = torch.empty(len(labels), dtype=torch.int64)
    of = torch.tensor(labels)
    for label in range(int(of.max()) + 1):
        places = (of == label).nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator)]
        out = min(max(round(held_out * len(places)), 1), len(places) - 2)
        found[places[:out]] = -1
        found[places[out:]] = torch.arange(len(places) - out) % folds
    return found
