"""Equality by bits says what equality by value says, on every planted fault."""

import math

import pytest
import torch

from graftkit.architecture.correspondence import IDENTITY
from graftkit.running.bits import equal, same_bits
from graftkit.running.probes import Probe
from graftkit.verification.differences import Differences
from graftkit.verification.distribution import Capture

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def values(dtype, *, seed=0):
    return torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(seed)).to(dtype)


def flipped(old, place=(1, 3, 5), bit=0):
    new = old.clone()
    new.view(WORDS[old.element_size()])[place] ^= 1 << bit
    return new


def both(old, number, place=(1, 3, 5)):
    old[place] = number
    return old, old.clone()


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2),
    "columns": lambda x: x[..., :21],
    "odd size": lambda x: x.reshape(-1)[:381].clone(),
    "odd start": lambda x: x.reshape(-1)[3:],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_says_what_equality_by_value_says(dtype, layout):
    old = values(dtype)
    pairs = {
        "copies": (old, old.clone()),
        "one flipped bit": (old, flipped(old)),
        "NaN in both": both(old.clone(), math.nan),
        "NaN in the new one": (old, both(old.clone(), math.nan)[0]),
        "infinity in both": both(old.clone(), math.inf),
        "infinities that cancel": both(both(old.clone(), math.inf)[0], -math.inf, (1, 3, 6)),
        "zeros of two signs": (both(old.clone(), 0.0)[0], both(old.clone(), -0.0)[0]),
        "other values": (old, values(dtype, seed=1)),
        "values whose sum is too large": both(old.clone(), torch.finfo(dtype).max, (slice(None), 3)),
    }
    take = LAYOUTS[layout]
    found = {name: equal(take(a), take(b)) for name, (a, b) in pairs.items()}
    assert found == {name: torch.equal(take(a), take(b)) for name, (a, b) in pairs.items()}
    assert [name for name, same in found.items() if not same] == [
        "one flipped bit", "NaN in both", "NaN in the new one", "other values",
    ]  # fmt: skip


def test_the_same_bits_are_those_of_nan_too_and_no_others():
    old = values(torch.bfloat16)
    assert same_bits(*both(old.clone(), math.nan))
    assert not same_bits(both(old.clone(), 0.0)[0], both(old.clone(), -0.0)[0])
    assert not same_bits(old, old.view(torch.float16))
    assert not same_bits(old, old.view(8, 2, 24))


def test_two_layouts_of_the_same_values_are_equal():
    old = values(torch.bfloat16)
    new = old.transpose(1, 2).contiguous().transpose(1, 2)
    assert equal(old, new)
    assert not equal(old, flipped(old).transpose(1, 2).contiguous().transpose(1, 2))


def test_other_dtypes_and_shapes_are_never_equal():
    old = torch.zeros(4, 8, dtype=torch.bfloat16)
    assert not equal(old, old.to(torch.float16))  # whose bits are the same
    assert not equal(old, old.float())
    assert not equal(old, old.view(8, 4))


@pytest.mark.parametrize("bit", range(16))
def test_every_bit_of_a_bfloat16_counts(bit):
    old = values(torch.bfloat16)
    assert not equal(old, flipped(old, bit=bit))


def compared(old, new):
    probe = Probe("texts", torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    found = Differences(IDENTITY)
    found.compare(probe, "logits", old, new, Capture(None), 0)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_output_check_sees_what_is_planted(dtype):
    old = values(dtype)
    assert not compared(old, old.clone()).failures()
    assert not compared(*both(old.clone(), math.inf)).failures()
    assert not compared(both(old.clone(), 0.0)[0], both(old.clone(), -0.0)[0]).failures()
    assert "promised bitwise" in compared(old, flipped(old)).failures()[0]
    assert "holds NaN, as it does for the source" in compared(*both(old.clone(), math.nan)).failures()[0]
    assert "holds NaN" in compared(old, both(old.clone(), math.nan)[0]).failures()[0]
    other = torch.float32 if dtype != torch.float32 else torch.bfloat16
    assert "was" in compared(old, old.to(other)).failures()[0]
