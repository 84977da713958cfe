"""Maps of indices: what corresponds after growing, trimming and renumbering, one behind the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftkit.architecture.correspondence import Correspondence, IndexMap


def test_a_grown_axis_keeps_all_but_what_was_made_anew():
    grown = IndexMap.grown(8, 10, [5, 8, 9])
    assert grown.runs == ((0, 0, 5), (6, 6, 2))
    assert grown.kept == grown.places == (0, 1, 2, 3, 4, 6, 7)
    assert grown.fresh == (5, 8, 9)
    assert grown.dropped == (5,)
    assert [grown.origin(index) for index in (4, 5, 6, 9)] == [4, None, 6, None]


def test_a_trimmed_axis_is_renumbered():
    trimmed = IndexMap.of_kept(8, [0, 1, 2, 5, 7])
    assert (trimmed.result, trimmed.runs) == (5, ((0, 0, 3), (3, 5, 1), (4, 7, 1)))
    assert trimmed.dropped == (3, 4, 6)
    values = torch.arange(8)
    assert trimmed.of_source(values).tolist() == [0, 1, 2, 5, 7]
    assert trimmed.of_result(torch.tensor([10, 11, 12, 15, 17])).tolist() == [10, 11, 12, 15, 17]


def test_one_run_is_a_view():
    values = torch.arange(12).view(2, 6)
    appended = IndexMap.grown(4, 6, [4, 5])
    assert appended.of_result(values).data_ptr() == values.data_ptr()
    assert appended.of_result(values).shape == (2, 4)


@given(st.lists(st.integers(0, 11), unique=True), st.lists(st.integers(0, 20), unique=True), st.integers(0, 6))
def test_maps_compose_as_functions_do(kept, others, more):
    first = IndexMap.of_kept(12, kept)
    grown = IndexMap.grown(first.result, first.result + more, range(first.result, first.result + more))
    second = IndexMap.of_kept(grown.result, [index for index in others if index < grown.result])
    both = first.then(grown).then(second)
    for place in range(both.result):
        middle = second.origin(place)
        wanted = None if middle is None or middle >= first.result else first.origin(middle)
        assert both.origin(place) == wanted
    assert (both.source, both.result) == (12, second.result)
    assert both == first.then(grown.then(second))


def test_axes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="an axis of 5 is not one of 8"):
        IndexMap.identity(5).then(IndexMap.identity(8))


def test_outputs_and_rows_are_compared_where_they_correspond():
    change = Correspondence(IndexMap.of_kept(6, [1, 4]), live=6)
    old, new = torch.arange(12).view(2, 6), torch.tensor([[1, 4], [7, 10]])
    assert change.over_ids(old, new)
    one, other = change.columns(old, new)
    assert one.equal(other)
    table = torch.randn(6, 3)
    one, other = change.rows(table, table[[1, 4]])
    assert one.equal(other)
    hidden = torch.randn(2, 3)
    assert change.columns(hidden, hidden)[0] is hidden
    behind = change.then(Correspondence(IndexMap.grown(2, 3, [2]), live=2))
    assert behind.live == 6
    assert behind.fresh_ids == (2,)
    assert behind.ids.kept == (1, 4)
