"""One comparison of outputs: what is equal, what is not, what NaN and infinity count for, and what masks and columns leave out."""

import math

import pytest
import torch

from graftkit.architecture.correspondence import Correspondence
from graftkit.running.probes import Probe
from graftkit.verification.comparison import Comparison
from graftkit.verification.differences import Differences
from graftkit.verification.distribution import Capture

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
PROBE = Probe("texts", torch.zeros_like(MASK), MASK)


def values(*, columns=6, seed=0):
    return torch.randn(2, 4, columns, generator=torch.Generator().manual_seed(seed))


def compared(old, new, change=None, **options):
    found = Comparison(change or Correspondence(), **options)
    found.add(PROBE, {"logits": old}, {"logits": new})
    return found.outputs["logits"]


def planted(number, place=(0, 1, 2)):
    new = values()
    new[place] = number
    return new


def test_what_is_equal_is_equal_at_every_place_that_is_text():
    found = compared(values(), values())
    assert (found.bitwise, found.places, found.largest, found.relative) == (True, 5 * 6, 0.0, 0.0)
    assert found.size == pytest.approx(float(values()[MASK.bool()].double().square().sum()))
    padding = compared(values(), planted(99.0, (0, 3, 2)))
    assert (padding.bitwise, padding.largest, padding.first) == (True, 0.0, "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_a_difference_is_measured_against_the_whole_in_float64(dtype):
    old, new = values().to(dtype), planted(3.0).to(dtype)
    found = compared(old, new)
    gap = abs(float(new[0, 1, 2]) - float(old[0, 1, 2]))
    assert (found.bitwise, found.first, found.nan, found.gone) == (False, "texts", "", "")
    assert found.largest == gap
    size = float(old[MASK.bool()].double().square().sum())
    assert found.relative == pytest.approx(gap / math.sqrt(size), rel=1e-12)


def test_one_flipped_bit_is_a_difference():
    new = values()
    new.view(torch.int32)[1, 1, 5] ^= 1
    assert 0 < compared(values(), new).largest < 1e-6


def test_nan_that_came_is_named_and_nan_that_was_there_is_no_difference_but_not_bitwise():
    came = compared(values(), planted(math.nan))
    assert (came.nan, came.largest, came.relative, came.bitwise) == ("texts", math.inf, math.inf, False)
    stayed = compared(planted(math.nan), planted(math.nan))
    assert (stayed.nan, stayed.largest, stayed.relative, stayed.bitwise) == ("", 0.0, 0.0, False)
    went = compared(planted(math.nan), values())
    assert (went.nan, went.relative) == ("", math.inf)


def test_an_infinity_on_one_side_alone_is_infinitely_far_and_on_both_none():
    assert compared(planted(-math.inf), planted(-math.inf)).bitwise
    for old, new in ((values(), planted(math.inf)), (planted(-math.inf), values())):
        found = compared(old, new)
        assert (found.largest, found.relative, found.error, found.nan) == (math.inf, math.inf, 0.0, "")
    assert compared(planted(-math.inf), planted(math.inf)).relative == math.inf


def test_what_is_gone_or_has_another_shape_is_named():
    assert compared(values(), values(columns=7)).gone == "texts"
    found = Comparison()
    found.add(PROBE, {"logits": values()}, {})
    assert found.outputs["logits"].gone == "texts"
    assert not found.bitwise


def test_corresponding_columns_are_compared_and_no_others():
    change = Correspondence.of_ids(6, 8, 6, (2, 6, 7))
    grown = torch.cat([values(), values(columns=2, seed=1)], -1)
    grown[..., 2] = 99.0
    assert compared(values(), grown, change).bitwise
    grown[0, 0, 3] += 1
    assert compared(values(), grown, change).largest == pytest.approx(1)


def test_probes_add_up_and_steps_of_decoding_are_joined_where_asked():
    found = Comparison(join_steps=True)
    for step in range(3):
        found.add(PROBE, {f"step {step} logits": values()}, {f"step {step} logits": planted(values()[0, 1, 2] + step)})
    ((name, one),) = found.outputs.items()
    assert (name, one.places, one.largest) == ("logits", 3 * 30, pytest.approx(2))
    assert one.squares == pytest.approx(1 + 4)
    plain = Comparison()
    plain.add(PROBE, {"step 1 logits": values()}, {"step 1 logits": values()})
    assert list(plain.outputs) == ["step 1 logits"]


def test_a_logit_that_became_infinite_is_beyond_every_tolerance():
    change = Correspondence.of_ids(6, 8, 6, (6, 7))
    new = torch.cat([values(), values(columns=2, seed=1)], -1)
    clean, broken = Differences(change), Differences(change)
    clean.compare(PROBE, "logits", values(), new, Capture(None), 4)
    assert clean.failures() == []
    new[0, 1, 2] = math.inf
    broken.compare(PROBE, "logits", values(), new, Capture(None), 4)
    assert "max |Δ| inf" in broken.failures()[0]
