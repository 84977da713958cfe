"""New rows beside old ones: streamed figures against the plain computation."""

import math

import pytest
import torch

from graftkit.initializers.comparison import BARS, SHOWN, compare_rows


def source(table, step=7):
    return lambda: ((start, table[start : start + step]) for start in range(0, len(table), step))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_norms_ranks_and_neighbours_are_those_of_the_whole_table(dtype, step):
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(40, 8, generator=generator).to(dtype), torch.randn(5, 8, generator=generator).to(dtype)
    found = compare_rows(source(old, step), 40, new, [50, 51, 52, 53, 54])
    wide = torch.nn.functional.normalize(old.float(), dim=1)
    for place, row in enumerate(found["rows"]):
        assert row["id"] == 50 + place
        assert row["norm"] == pytest.approx(float(new[place].float().norm()))
        assert row["rank"] == int((old.float().norm(dim=1) < new[place].float().norm()).sum()) / 40
        cosines = wide @ torch.nn.functional.normalize(new[place].float(), dim=0)
        best = cosines.topk(3)
        assert [n["id"] for n in row["neighbours"]] == best.indices.tolist()
        assert [n["cosine"] for n in row["neighbours"]] == pytest.approx(best.values.tolist(), abs=1e-6)
    norms = old.float().norm(dim=1)
    assert found["old_norms"]["quantiles"]["0.5"] in norms.tolist()
    assert sum(found["old_norms"]["counts"]) == 40 == found["old_norms"]["count"]
    assert len(found["old_norms"]["counts"]) == BARS


def test_a_planted_twin_and_a_planted_copy_are_seen():
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(40, 8, generator=generator), torch.randn(3, 8, generator=generator)
    assert all(row["twin"] < 0.99 for row in compare_rows(source(old), 40, new, [0, 1, 2])["rows"])
    new[2] = 2 * new[0]
    new[1] = old[33]
    rows = compare_rows(source(old), 40, new, [0, 1, 2])["rows"]
    assert rows[0]["twin"] == rows[2]["twin"] == pytest.approx(1)
    assert rows[1]["neighbours"][0] == {"id": 33, "cosine": pytest.approx(1)}


def test_one_row_has_no_twin_and_a_zero_row_no_direction():
    old = torch.eye(4)
    (row,) = compare_rows(source(old), 4, torch.zeros(1, 4), [9])["rows"]
    assert (row["twin"], row["norm"], row["rank"]) == (None, 0.0, 0.0)
    assert [n["cosine"] for n in row["neighbours"]] == [0, 0, 0]


def test_only_the_first_of_many_are_looked_at_one_by_one():
    found = compare_rows(source(torch.eye(4)), 4, torch.ones(SHOWN + 9, 4), list(range(SHOWN + 9)))
    assert len(found["rows"]) == SHOWN
    assert found["new_norms"]["count"] == SHOWN + 9


def test_rows_that_are_not_finite_are_left_out_of_the_spread():
    old = torch.eye(4)
    old[0, 0] = math.nan
    spread = compare_rows(source(old), 4, torch.ones(1, 4), [4])["old_norms"]
    assert (sum(spread["counts"]), spread["count"], spread["quantiles"]["0.5"]) == (3, 4, 1.0)
