"""The gap of two tensors is what its definition says, wherever NaN, infinities and masks stand."""

import math

import pytest
import torch

from graftkit.verification.lens.gap import gap, largest, scale


def values(dtype=torch.float64):
    return torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def with_(number, place=(1, 2, 3)):
    found = values()
    found[place] = number
    return found


def rms(tensor):
    return float(tensor.double().flatten().square().mean().sqrt())


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_the_same_on_both_sides_agrees_and_on_one_does_not(number):
    assert gap(with_(number), with_(number)) == 0
    assert gap(values(), with_(number)) > 1e300
    assert gap(with_(number), values()) > 1e300
    moved = with_(number)
    moved[0, 0, 0] += 0.5
    assert gap(with_(number), moved) == pytest.approx(0.5 / scale(with_(number)))


def test_it_is_the_largest_difference_over_the_rms():
    old, new = values(), values()
    new[0, 1, 2] -= 0.25
    new[2, 2, 2] += 0.125
    assert gap(old, new) == pytest.approx(0.25 / rms(old), rel=1e-15)
    assert gap(old.transpose(0, 2), new.transpose(0, 2)) == pytest.approx(gap(old, new), rel=1e-15)


def test_one_unit_in_the_last_place_counts_and_the_sign_of_zero_does_not():
    old, new = values(torch.bfloat16), values(torch.bfloat16)
    new.view(torch.int16)[1, 1, 1] += 1
    assert 0 < gap(old, new) < 0.02
    assert gap(with_(0.0), with_(-0.0)) == 0
    assert gap(with_(5e-324), with_(0.0)) > 0


def test_masks_and_what_is_not_finite_are_no_measure_of_size():
    for number in (-1e9, math.inf, math.nan):
        rest = torch.cat([values().flatten()[:52], values().flatten()[53:]])
        assert scale(with_(number)) == pytest.approx(rms(rest), rel=1e-14)
    assert scale(torch.zeros(4)) == 1
    assert scale(torch.full((4,), -1e9)) == 1


def test_the_largest_absolute_value():
    assert largest(torch.tensor([1.0, -3.0, 2.0])) == 3
    assert largest(torch.tensor(-2.0)) == 2
    assert math.isnan(largest(torch.tensor([1.0, math.nan])))
