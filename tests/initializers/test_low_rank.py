"""The randomised factors hold as much of a weight as torch's own, whatever its shape, dtype and spectrum."""

import pytest
import torch

from graftkit.initializers import low_rank

RANK, SCALING = 8, 2.0


def with_spectrum(rows, columns, decay):
    """A random matrix whose singular values fall by the factor exp(-decay)."""
    generator = torch.Generator().manual_seed(3)
    width = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, width, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, width, generator=generator)).Q
    return (left * torch.exp(-decay * torch.arange(width))) @ right.T


def left_over(weight, factors):
    a, b = factors
    assert a.shape == (RANK, weight.shape[1])
    assert b.shape == (weight.shape[0], RANK)
    return float((weight.double() - SCALING * b.double() @ a.double()).norm())


@pytest.mark.parametrize("decay", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(900, 120), (120, 900), (300, 300)])
def test_four_iterations_leave_about_as_little_as_the_whole_decomposition(shape, dtype, decay, monkeypatch):
    monkeypatch.setattr(low_rank, "WIDENED", 100 * shape[1])  # some blocks, the last one smaller
    weight = with_spectrum(*shape, decay).to(dtype)
    best = left_over(weight, low_rank.pissa(weight.float(), RANK, SCALING))
    found = left_over(weight, low_rank.pissa_niter(weight, RANK, SCALING, 4, seed=1))
    assert best <= found * (1 + 1e-6)
    assert found < 1.03 * best


def test_more_iterations_leave_less():
    weight = with_spectrum(400, 300, 0.02)
    found = [left_over(weight, low_rank.pissa_niter(weight, RANK, SCALING, count, seed=1)) for count in (0, 1, 4, 16)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("weight", [torch.zeros(40, 30), torch.outer(torch.arange(40.0), torch.arange(30.0))])
def test_a_weight_of_a_lower_rank_is_held_whole(weight):
    factors = low_rank.pissa_niter(weight, RANK, SCALING, 4, seed=1)
    assert all(bool(factor.isfinite().all()) for factor in factors)
    assert left_over(weight, factors) <= 1e-6 * float(weight.norm())


def test_the_seed_decides():
    weight = with_spectrum(60, 50, 0.02)
    first, again, other = (low_rank.pissa_niter(weight, RANK, SCALING, 1, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
