"""Closed-form classifiers against their textbook formulas, and what is measured on what they have not seen."""

import math

import pytest
import torch

from graftkit.initializers.classifiers import deal, fit, moments

pytestmark = pytest.mark.cross_section

D, CLASSES, N = 12, 3, 300


def data(spread=1.0, n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, D, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % CLASSES
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return means[labels] + spread * torch.randn(n, D, generator=generator, dtype=torch.float64) @ mix, labels


def pieces(x, y, folds, size=64):
    def read():
        for start in range(0, len(y), size):
            part = slice(start, start + size)
            yield x[part], y[part], folds[part]

    return read


def folds_of(labels, folds=5):
    return deal(labels.tolist(), 0.2, folds, torch.Generator().manual_seed(0))


def test_every_label_is_dealt_alike_and_some_of_each_is_held_out():
    folds = folds_of(torch.arange(N) % CLASSES)
    for label in range(CLASSES):
        own = folds[torch.arange(N) % CLASSES == label]
        assert int((own < 0).sum()) == 20
        assert {int((own == fold).sum()) for fold in range(5)} == {16}
    few = deal([0, 0, 0, 1, 1, 1], 0.01, 5, torch.Generator().manual_seed(0))
    assert int((few < 0).sum()) == 2


def test_moments_of_pieces_are_those_of_the_whole():
    x, y = data()
    folds = folds_of(y)
    found = moments(pieces(x, y, folds), CLASSES, None)
    kept = folds >= 0
    assert torch.allclose(found.second, x[kept].T @ x[kept])
    assert torch.allclose(found.sums[1], x[kept & (y == 1)].sum(0))
    one = moments(pieces(x, y, folds), CLASSES, 3)
    rest = found.without(one)
    assert torch.allclose(rest.counts, torch.bincount(y[kept & (folds != 3)]).double())


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_is_the_closed_form(bias):
    x, y = data()
    folds = folds_of(y)
    found = fit("ridge", pieces(x, y, folds), CLASSES, 5, bias=bias)
    kept = folds >= 0
    h, target = x[kept], torch.nn.functional.one_hot(y[kept], CLASSES).double()
    if bias:
        h = h - h.mean(0)
        target = target - target.mean(0)
    gram = h.T @ h
    strength = found.strength * gram.diagonal().mean()
    wanted = torch.linalg.solve(gram + strength * torch.eye(D), h.T @ target).T
    assert torch.allclose(found.weight / found.temperature, wanted, rtol=1e-8, atol=1e-10)
    assert (found.bias is None) == (not bias)


def test_lda_is_the_closed_form():
    x, y = data()
    folds = folds_of(y)
    found = fit("lda", pieces(x, y, folds), CLASSES, 5)
    kept = folds >= 0
    h, labels = x[kept], y[kept]
    means = torch.stack([h[labels == c].mean(0) for c in range(CLASSES)])
    within = (h - means[labels]).T @ (h - means[labels]) / len(h)
    shrunk = (1 - found.strength) * within + found.strength * within.diagonal().mean() * torch.eye(D)
    wanted = torch.linalg.solve(shrunk, means.T).T
    assert torch.allclose(found.weight / found.temperature, wanted, rtol=1e-8)
    prior = torch.bincount(labels).double().div(len(h)).log()
    assert torch.allclose(found.bias / found.temperature, -0.5 * (wanted * means).sum(-1) + prior, rtol=1e-8)


def test_prototypes_measure_the_distance_to_the_means():
    x, y = data(spread=0.2)
    folds = folds_of(y)
    found = fit("prototype", pieces(x, y, folds), CLASSES, 5)
    kept = folds >= 0
    means = torch.stack([x[kept & (y == c)].mean(0) for c in range(CLASSES)])
    logits = x @ found.weight.T + found.bias
    distances = -found.temperature * torch.cdist(x, means).square()
    assert torch.allclose(logits.log_softmax(-1), distances.log_softmax(-1), atol=1e-8)


@pytest.mark.parametrize("method", ["ridge", "lda", "prototype"])
def test_the_temperature_is_the_best_on_unseen_examples_and_the_score_is_honest(method):
    x, y = data(spread=1.5, n=1500)
    folds = folds_of(y)
    found = fit(method, pieces(x, y, folds, size=128), CLASSES, 5)
    fresh = folds < 0
    logits = x[fresh] @ found.weight.T + found.bias
    accuracy = (logits.argmax(-1) == y[fresh]).double().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, y[fresh]).item()
    assert accuracy == pytest.approx(found.accuracy, abs=0.08)
    assert loss == pytest.approx(found.loss, abs=0.12)
    for factor in (0.5, 2):
        assert torch.nn.functional.cross_entropy(logits * factor, y[fresh]) > loss - 0.02


def test_pure_noise_is_not_taken_for_signal():
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(90, 60, generator=generator, dtype=torch.float64), torch.arange(90) % CLASSES
    found = fit("ridge", pieces(x, y, folds_of(y)), CLASSES, 5)
    assert found.loss == pytest.approx(math.log(CLASSES), abs=0.05)
    logits = torch.randn(500, 60, generator=generator, dtype=torch.float64) @ found.weight.T + found.bias
    assert logits.softmax(-1).max() < 0.7


def test_without_a_bias_only_ridge_is_fitted():
    x, y = data()
    with pytest.raises(ValueError, match="lda needs a bias"):
        fit("lda", pieces(x, y, folds_of(y)), CLASSES, 5, bias=False)
