"""One classifier for each label, in closed form, against plain least squares, scikit-like LDA and an optimiser."""

import pytest
import torch

from graftkit.initializers.classifiers import STRENGTHS, moments
from graftkit.initializers.dealing import HELD_OUT, badly_dealt, deal_sets
from graftkit.initializers.label_sets import _calibrate, _solutions, _with_all, fit_sets

pytestmark = pytest.mark.cross_section

D, LABELS, N, FOLDS = 10, 4, 400, 5


def data(seed=0, n=N, noise=1.0):
    """Features, and labels that are noisy halves of space; the last label is rare."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64) @ torch.randn(
        D, D, generator=generator, dtype=torch.float64
    )
    direction = torch.randn(LABELS, D, generator=generator, dtype=torch.float64)
    scores = x @ direction.T / direction.norm() + noise * torch.randn(
        n, LABELS, generator=generator, dtype=torch.float64
    )
    quantiles = torch.tensor([0.5, 0.6, 0.8, 0.93], dtype=torch.float64)
    limits = torch.stack([scores[:, i].quantile(q) for i, q in enumerate(quantiles)])
    return x + 1.5, (scores > limits).to(torch.int64)


def sets_of(y):
    return [tuple(row.nonzero().flatten().tolist()) for row in y]


def folds_of(y, held_out=0.2):
    return deal_sets(sets_of(y), y.shape[1], held_out, FOLDS, torch.Generator().manual_seed(0))


def pieces(x, y, folds, size=64):
    def read():
        for start in range(0, len(y), size):
            part = slice(start, start + size)
            yield x[part], y[part], folds[part]

    return read


def test_every_label_has_its_share_everywhere():
    _, y = data()
    folds = folds_of(y)
    assert sorted(set(folds.tolist())) == [HELD_OUT, *range(FOLDS)]
    for label in range(LABELS):
        own = folds[y[:, label] == 1]
        assert abs(int((own == HELD_OUT).sum()) - 0.2 * len(own)) <= 2
        for fold in range(FOLDS):
            assert abs(int((own == fold).sum()) - 0.16 * len(own)) <= 2
    assert badly_dealt(sets_of(y), LABELS, folds) == []


@pytest.mark.parametrize("held_out", [0.001, 0.2, 0.9])
def test_three_examples_of_a_label_are_enough(held_out):
    sets = [(0,), (0,), (0,), (1,), (1,), (0, 1), (2,), (2, 1), (2,), (), (), ()]
    folds = deal_sets(sets, 3, held_out, FOLDS, torch.Generator().manual_seed(0))
    assert badly_dealt(sets, 3, folds) == []


def test_what_cannot_be_dealt_is_named():
    assert badly_dealt([(0,), (0,), (), ()], 1, torch.tensor([0, 1, 0, 1])) == [0]  # nothing held out
    assert badly_dealt([(0,), (0,), (), ()], 1, torch.tensor([-1, 1, 0, 1])) == [0]  # in one fold alone
    assert badly_dealt([(0,), (0,), (0,), ()], 1, torch.tensor([-1, 0, 1, 1])) == [0]  # all else in one fold alone
    assert badly_dealt([(0,), (0,), (0,), (), ()], 1, torch.tensor([-1, 0, 1, 1, 0])) == []


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_is_least_squares(bias):
    x, y = data()
    folds = folds_of(y)
    kept = folds >= 0
    m = moments(_with_all(pieces(x, y, folds)), LABELS + 1, None)
    strengths = (0.01, 1.0)
    weights, biases = _solutions("ridge", m, strengths, bias=bias)
    inner = x[kept] - x[kept].mean(0) if bias else x[kept]
    target = 2 * y[kept].double() - 1
    target = target - target.mean(0) if bias else target
    scatter = inner.T @ inner
    for index, strength in enumerate(strengths):
        penalty = strength * scatter.diagonal().mean() * torch.eye(D, dtype=torch.float64)
        wanted = torch.linalg.solve(scatter + penalty, inner.T @ target).T
        torch.testing.assert_close(weights[index], wanted)
        torch.testing.assert_close(biases[index], -(wanted @ x[kept].mean(0)) if bias else torch.zeros(LABELS).double())


def test_lda_is_the_textbook_s_for_each_label():
    x, y = data()
    folds = folds_of(y)
    kept = folds >= 0
    m = moments(_with_all(pieces(x, y, folds)), LABELS + 1, None)
    share = 0.1
    weights, biases = _solutions("lda", m, (share,), bias=True)
    own, n = x[kept], int(kept.sum())
    whole = (own - own.mean(0)).T @ (own - own.mean(0)) / n
    for label in range(LABELS):
        yes, no = own[y[kept, label] == 1], own[y[kept, label] == 0]
        within = ((yes - yes.mean(0)).T @ (yes - yes.mean(0)) + (no - no.mean(0)).T @ (no - no.mean(0))) / n
        shrunk = (1 - share) * within + share * whole.diagonal().mean() * torch.eye(D, dtype=torch.float64)
        wanted = torch.linalg.solve(shrunk, yes.mean(0) - no.mean(0))
        torch.testing.assert_close(weights[0, label], wanted)
        offset = -0.5 * wanted @ (yes.mean(0) + no.mean(0)) + torch.tensor(len(yes) / len(no)).double().log()
        torch.testing.assert_close(biases[0, label], offset)


@pytest.mark.parametrize("offset", [True, False])
def test_temperature_and_offset_are_those_of_an_optimiser(offset):
    x, y = data()
    folds = torch.zeros(N, dtype=torch.int64)
    m = moments(_with_all(pieces(x, y, folds)), LABELS + 1, None)
    scores = (x @ torch.randn(D, 2 * LABELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).view(
        N, 2, LABELS
    )
    scale, shift, losses = _calibrate(
        lambda: iter([(scores[:150], y[:150].double()), (scores[150:], y[150:].double())]), m, offset=offset
    )
    counts = y.sum(0).double()
    smooth = torch.where(y == 1, (counts + 1) / (counts + 2), 1 / (N - counts + 2))[:, None].expand(N, 2, LABELS)
    a = torch.zeros(2, LABELS, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(2, LABELS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [a, *([b] if offset else [])], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(a * scores + b, smooth, reduction="sum")
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(scale, a.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shift, b.detach(), atol=1e-5, rtol=1e-5)
    exact = torch.nn.functional.binary_cross_entropy_with_logits(
        (scale * scores + shift), y[:, None].double().expand(N, 2, LABELS), reduction="none"
    ).mean(0)
    torch.testing.assert_close(losses, exact)


@pytest.mark.parametrize(("method", "bias"), [("ridge", True), ("lda", True), ("ridge", False)])
def test_the_loss_of_cross_validation_is_that_of_new_examples(method, bias):
    x, y = data(n=3000)
    folds = folds_of(y)
    found = fit_sets(method, pieces(x, y, folds), LABELS, FOLDS, bias=bias)
    out = folds == HELD_OUT
    logits = x[out] @ found.weight.T + (found.bias if bias else 0)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[out].double(), reduction="none")
    share = y[folds >= 0].double().mean(0)
    trivial = -(share * share.log() + (1 - share) * (1 - share).log())
    for label in range(LABELS):
        error = float(losses[:, label].std()) / len(losses) ** 0.5
        assert abs(float(losses[:, label].mean()) - found.losses[label]) < 4 * error
        if bias:
            assert found.losses[label] < float(trivial[label])
        assert found.strengths[label] in STRENGTHS[method]
    assert found.loss == pytest.approx(sum(found.losses) / LABELS)
    assert (found.bias is None) == (not bias)


def test_separated_labels_keep_finite_temperatures():
    x, y = data(noise=0.0)
    found = fit_sets("ridge", pieces(x, y, folds_of(y)), LABELS, FOLDS)
    assert torch.isfinite(found.weight).all()
    assert 0 < found.loss < 0.5


def test_lda_without_a_bias_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match="lda needs a bias"):
        fit_sets("lda", pieces(x, y, folds_of(y)), LABELS, FOLDS, bias=False)
