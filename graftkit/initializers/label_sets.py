"""One linear classifier for each label, in closed form, where an example may have several labels or none: ridge, LDA.

Each label is a problem of its own, that label against all else, with its own strength and its own temperature; all of them come
from one eigendecomposition of the second moment. As in :mod:`graftkit.initializers.classifiers` only moments are held, and
strengths and temperatures are chosen by the log loss of cross-validation. Between two classes LDA and ridge have the same
directions (Fisher 1936); they differ in the strengths that are tried, and in the offset: LDA's is its own, ridge's is fitted with
the temperature.

*Shapes:* features ``(n, d)``, targets ``(n, labels)`` of zeros and ones, folds ``(n,)``, weights ``(labels, d)``, biases ``(labels,)``;
scores and what is fitted to them ``(strengths, labels)``; all float64.

Source of temperature and offset: Platt 1999, with his smoothed targets, which keep both finite where examples are separated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graftkit.initializers.classifiers import STRENGTHS, Moments, Pieces, moments

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["ridge", "lda"]

#: Newton steps at most, how far a step goes at most in logits of standardised scores, and the step that ends them.
STEPS, REACH, SETTLED = 50, 2.0, 1e-9

#: ``(scores (rows, strengths, labels), targets (rows, labels))`` of a piece, by solutions that have not seen it.
Scored = Callable[[], Iterator[tuple["Tensor", "Tensor"]]]


@dataclass(frozen=True, slots=True)
class SetFit:
    """Fitted classifiers, one for each label; ``bias`` is None where none was asked for. ``loss`` is the mean over the labels.

    ``strengths``, ``temperatures`` and the log losses of cross-validation, ``losses``, are those of each label.
    """

    weight: Tensor
    bias: Tensor | None
    strengths: tuple[float, ...]
    temperatures: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """The mean of the labels' log losses."""
        return sum(self.losses) / len(self.losses)


def fit_sets(method: Method, pieces: Pieces, labels: int, folds: int, *, bias: bool = True) -> SetFit:
    """Fit ``method``; examples of negative folds are left out.

    Raises:
        ValueError: LDA is nothing without a bias.
    """
    import torch

    if not bias and method != "ridge":
        raise ValueError(f"{method} needs a bias")
    strengths = STRENGTHS[method]
    total = moments(_with_all(pieces), labels + 1, None)
    apart = [
        _solutions(method, total.without(moments(_with_all(pieces), labels + 1, fold)), strengths, bias=bias)
        for fold in range(folds)
    ]

    def scored() -> Iterator[tuple[Tensor, Tensor]]:
        for features, targets, places in pieces():
            for fold, (weights, biases) in enumerate(apart):
                chosen = places == fold
                x = features[chosen].double()
                yield torch.einsum("nd,sld->nsl", x, weights) + biases, targets[chosen].double()

    scale, offset, losses = _calibrate(scored, total, offset=bias and method == "ridge")
    best = losses.argmin(0)
    each = torch.arange(labels)
    weights, biases = _solutions(method, total, strengths, bias=bias)
    scale, offset, losses = scale[best, each], offset[best, each], losses[best, each]
    weight, intercept = weights[best, each] * scale[:, None], biases[best, each] * scale + offset
    return SetFit(
        weight, intercept if bias else None, tuple(strengths[i] for i in best.tolist()), tuple(scale.tolist()),
        tuple(losses.tolist()),
    )  # fmt: skip


def _with_all(pieces: Pieces) -> Pieces:
    """The pieces with one label before the others that every example has, so that moments hold those of all."""
    import torch

    def read() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for features, targets, folds in pieces():
            yield features, torch.cat([torch.ones_like(targets[:, :1]), targets], 1), folds

    return read


def _solutions(method: Method, m: Moments, strengths: tuple[float, ...], *, bias: bool) -> tuple[Tensor, Tensor]:
    """Weights ``(strengths, labels, d)`` and biases ``(strengths, labels)`` before temperature and offset."""
    import torch

    n, counts = m.counts[0], m.counts[1:]
    centre = m.sums[0] / n if bias else torch.zeros_like(m.sums[0])
    values, vectors = torch.linalg.eigh(m.second / n - torch.outer(centre, centre))
    values, unit = values.clamp(min=0), values.mean().clamp(min=1e-300)
    if method == "ridge":
        # of targets ±1, which need no intercept where there is none
        target = (2 * m.sums[1:] - m.sums[0] - (2 * counts - n)[:, None] * centre) / n
        weights = torch.stack([((target @ vectors) / (values + s * unit)) @ vectors.T for s in strengths])
        return weights, -(weights @ centre)
    means, others = m.sums[1:] / counts[:, None], (m.sums[0] - m.sums[1:]) / (n - counts)[:, None]
    gap, between = means - others, counts * (n - counts) / n**2
    found = []
    for share in strengths:
        weight = ((gap @ vectors) / ((1 - share) * values + share * unit)) @ vectors.T
        # the covariance within the two classes is the whole one less what lies between their means (Sherman and Morrison 1950)
        rest = 1 - (1 - share) * between * (gap * weight).sum(-1)
        found.append(weight / rest.clamp(min=1e-12)[:, None])
    weights = torch.stack(found)
    return weights, -0.5 * (weights * (means + others)).sum(-1) + (counts / (n - counts)).log()


def _calibrate(scored: Scored, m: Moments, *, offset: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Temperature, offset and log loss of each strength and label: logit = temperature · score + offset, the offset 0 without one.

    Newton's method on the log loss of Platt's smoothed targets, which is convex; scores are standardised meanwhile.
    """
    import torch

    n, counts = m.counts[0], m.counts[1:]
    high, low = (counts + 1) / (counts + 2), 1 / (n - counts + 2)
    middle, width = _spread(scored, n, centred=offset)
    a = torch.zeros_like(width)
    b = (counts / (n - counts)).log().expand_as(a).clone() if offset else torch.zeros_like(a)
    for _ in range(STEPS):
        gradients, curvatures = torch.zeros(2, *a.shape, dtype=a.dtype), torch.zeros(3, *a.shape, dtype=a.dtype)
        for scores, targets in scored():
            z = (scores - middle) / width
            p = (a * z + b).sigmoid()
            wrong, slope = p - (low + (high - low) * targets)[:, None], p * (1 - p)
            gradients += torch.stack([(wrong * z).sum(0), wrong.sum(0)])
            curvatures += torch.stack([(slope * z * z).sum(0), (slope * z).sum(0), slope.sum(0)])
        da, db = _newton(gradients / n, curvatures / n, offset=offset)
        a, b = a - da, b - db
        if max(float(da.abs().max()), float(db.abs().max())) < SETTLED:
            break
    scale, intercept = a / width, b - a * middle / width
    return scale, intercept, _log_loss(scored, scale, intercept, n)


def _newton(gradients: Tensor, curvatures: Tensor, *, offset: bool) -> tuple[Tensor, Tensor]:
    """The step in temperature and offset, no longer than :data:`REACH`."""
    import torch

    (ga, gb), (haa, hab, hbb) = gradients, curvatures + torch.tensor([1e-12, 0.0, 1e-12])[:, None, None]
    if not offset:
        return (ga / haa).clamp(-REACH, REACH), torch.zeros_like(ga)
    determinant = (haa * hbb - hab * hab).clamp(min=1e-24)
    da, db = (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant
    length = torch.hypot(da, db).clamp(min=REACH) / REACH
    return da / length, db / length


def _spread(scored: Scored, n: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Mean (zero where it is not wanted) and standard deviation of the scores of each strength and label."""
    import torch

    first, second = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for scores, _ in scored():
        first, second = first + scores.sum(0) / n, second + scores.square().sum(0) / n
    middle = first if centred else torch.zeros_like(first)
    return middle, (second - middle.square()).clamp(min=0).sqrt().clamp(min=1e-300)


def _log_loss(scored: Scored, scale: Tensor, offset: Tensor, n: Tensor) -> Tensor:
    import torch

    found = torch.zeros_like(scale)
    for scores, targets in scored():
        logits = scale * scores + offset
        found += torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets[:, None].expand_as(logits), reduction="none"
        ).sum(0)
    return found / n
