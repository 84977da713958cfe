"""Factors hold as much of a weight as torch's decompositions of the whole, whatever its shape, layout, dtype and spectrum."""

import pytest
import torch

from graftkit.initializers import low_rank

pytestmark = pytest.mark.cross_section

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


@pytest.fixture(params=[(900, 120), (120, 900), (300, 300), "transposed"], ids=str)
def shaped(request, monkeypatch):
    """Makes a weight of a spectrum that is widened in some pieces, the last one smaller."""
    shape = (130, 500) if request.param == "transposed" else request.param
    monkeypatch.setattr(low_rank, "WIDENED", 77 * max(shape))
    if request.param == "transposed":
        return lambda decay: with_spectrum(500, 130, decay).T
    return lambda decay: with_spectrum(*shape, decay)


@pytest.mark.parametrize("decay", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pissa_leaves_what_the_exact_decomposition_leaves(shaped, dtype, decay):
    weight = shaped(decay).to(dtype)
    a, b = low_rank.pissa(weight, RANK, SCALING)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    best = float(s[RANK:].norm())
    assert left_over(weight, (a, b)) == pytest.approx(best, rel=1e-5)
    root = (s[:RANK] / SCALING).sqrt()
    assert torch.allclose((b.double() / root).abs(), u[:, :RANK].abs(), atol=2e-6)
    assert torch.allclose((a.double() / root[:, None]).abs(), vh[:RANK].abs(), atol=2e-6)


@pytest.mark.parametrize("decay", [0.02, 0.1])
def test_pissa_is_closer_to_the_exact_factors_than_a_decomposition_in_float32(shaped, decay):
    weight = shaped(decay)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    exact = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    a, b = low_rank.pissa(weight, RANK, SCALING)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    single = (u[:, :RANK] * s[:RANK]).double() @ vh[:RANK].double()
    assert (SCALING * b.double() @ a.double() - exact).norm() < 0.3 * (single - exact).norm()


@pytest.mark.parametrize("decay", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_four_iterations_leave_about_as_little(shaped, dtype, decay):
    weight = shaped(decay).to(dtype)
    best = float(torch.linalg.svdvals(weight.double())[RANK:].norm())
    found = left_over(weight, low_rank.pissa_niter(weight, RANK, SCALING, 4, seed=1))
    assert best * (1 - 1e-6) <= found < 1.03 * best


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_olora_is_the_leading_part_of_the_whole_decomposition(shaped, dtype):
    weight = shaped(0.02).to(dtype)
    a, b = low_rank.olora(weight, RANK)
    q, r = torch.linalg.qr(weight.double())
    assert torch.allclose(b.double(), q[:, :RANK], atol=1e-5)
    assert torch.allclose(a.double(), r[:RANK], atol=1e-5)


def test_more_iterations_leave_less():
    weight = with_spectrum(400, 300, 0.02)
    found = [left_over(weight, low_rank.pissa_niter(weight, RANK, SCALING, count, seed=1)) for count in (0, 1, 4, 16)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("weight", [torch.zeros(40, 30), torch.outer(torch.arange(40.0), torch.arange(30.0))])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_of_a_lower_rank_is_held_whole(weight, transposed):
    weight = weight.T if transposed else weight
    for factors in (low_rank.pissa_niter(weight, RANK, SCALING, 4, seed=1), low_rank.pissa(weight, RANK, SCALING)):
        assert all(bool(factor.isfinite().all()) for factor in factors)
        assert left_over(weight, factors) <= 1e-6 * float(weight.norm())


def test_the_seed_decides():
    weight = with_spectrum(60, 50, 0.02)
    first, again, other = (low_rank.pissa_niter(weight, RANK, SCALING, 1, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
