"""Maps of indices: what corresponds after growing, trimming and renumbering, one behind the other."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.index_map import IndexMap


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


#: Four blocks of three: a new one behind the first.
GROWN = Correspondence(blocks=IndexMap(3, 4, ((0, 0, 1), (2, 1, 2))), stack="model.layers")


@given(st.lists(st.integers(0, 11), unique=True), st.integers(0, 6))
def test_the_inverse_leads_back(kept, more):
    forth = IndexMap.of_kept(12, kept)
    forth = forth.then(IndexMap.grown(forth.result, forth.result + more, ()))
    assert forth.inverse.inverse.then(IndexMap.identity(forth.result)) == forth.then(IndexMap.identity(forth.result))
    for place in range(forth.result):
        origin = forth.origin(place)
        assert origin is None or forth.inverse.origin(origin) == place
    assert {place for place in range(12) if forth.inverse.origin(place) is None} == set(forth.dropped)


@pytest.mark.parametrize(
    ("result", "source"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.layers.1.mlp.up_proj.weight", None),
        ("model.layers.2", "model.layers.1"),
        ("layers.3.mlp", "layers.2.mlp"),
        ("model.layers", "model.layers"),
        ("model.layers_2.1.weight", "model.layers_2.1.weight"),
        ("model.vision.layers.1.mlp", "model.vision.layers.1.mlp"),
        ("lm_head.weight", "lm_head.weight"),
        ("", ""),
    ],
)
def test_modules_are_named_by_their_blocks_in_source_and_result(result, source):
    assert GROWN.module_in_source(result) == source
    if source is not None:
        assert GROWN.module_in_result(source) == result


def test_hidden_states_are_what_blocks_give_the_first_what_they_take_and_the_last_what_the_stack_gives():
    names = [GROWN.output_in_source(f"hidden_states.{index}") for index in range(5)]
    assert names == ["hidden_states.0", "hidden_states.1", None, "hidden_states.2", "hidden_states.3"]
    assert [GROWN.output_in_result(f"step 1 hidden_states.{index}") for index in range(4)] == [
        f"step 1 hidden_states.{index}" for index in (0, 1, 3, 4)
    ]
    assert GROWN.output_in_source("hidden_states_ngram.4") == "hidden_states_ngram.3", (
        "as ProphetNet has them beside these"
    )
    for name in ("logits", "last_hidden_state", "encoder_hidden_states.2", "image_hidden_states.2", "hidden_states"):
        assert GROWN.output_in_source(name) == name
    behind = Correspondence(blocks=IndexMap(3, 4, ((0, 0, 3),)), stack="model.layers")
    assert behind.output_in_source("hidden_states.3") is None, "the last of the source's is normed, this is not"
    assert behind.output_in_source("hidden_states.4") == "hidden_states.3"


def test_of_two_stacks_only_the_one_that_is_named_is_renumbered():
    change = Correspondence(blocks=GROWN.blocks, stack="model.decoder.layers")
    assert change.output_in_source("decoder_hidden_states.3") == "decoder_hidden_states.2"
    assert change.output_in_source("encoder_hidden_states.3") == "encoder_hidden_states.3"
    assert change.module_in_source("model.encoder.layers.3.fc1") == "model.encoder.layers.3.fc1"
    assert change.blocks_of("decoder.layers") is change.blocks_of("model.decoder.layers") is GROWN.blocks
    assert change.blocks_of("model.encoder.layers") is None
    assert change.inside("model.encoder").output_in_source("hidden_states.3") == "hidden_states.3"
    assert change.inside("model.decoder").output_in_source("hidden_states.3") == "hidden_states.2"
    assert change.inside("") is change


def test_one_operation_behind_the_other_renumbers_twice():
    dropped = Correspondence(blocks=IndexMap.of_kept(4, [0, 2, 3]), stack="model.layers")
    both = GROWN.then(dropped)
    assert [both.module_in_source(f"model.layers.{index}.mlp") for index in range(3)] == [
        f"model.layers.{index}.mlp" for index in range(3)
    ]
    assert GROWN.then(Correspondence(IndexMap.identity(8), 8)).blocks == GROWN.blocks
    assert GROWN.within_source().blocks is None


def test_inputs_are_drawn_of_the_ids_that_both_tokenizers_have_and_the_result_keeps():
    assert IDENTITY.drawn_ids is None
    assert Correspondence.of_ids(10, 12, 8, (8, 9, 10, 11)).drawn_ids == range(8)
    assert Correspondence.of_ids(10, 10, 8, (2, 3, 9)).drawn_ids == (0, 1, 4, 5, 6, 7)
    assert Correspondence(IndexMap.of_kept(6, (0, 2, 4)), 5).drawn_ids == (0, 2, 4)


def test_a_part_is_named_from_its_module_on():
    part = Correspondence(part=("model.language_model", "model"))
    assert part.module_in_result("model.language_model.layers.0.mlp") == "model.layers.0.mlp"
    assert part.module_in_source("model.layers.0.mlp") == "model.language_model.layers.0.mlp"
    assert part.module_in_result("lm_head") == part.module_in_source("lm_head") == "lm_head"
    assert part.module_in_result("model.visual") is None
    assert part.module_in_result("") == ""
    alone = Correspondence(part=("encoder", ""))
    assert [alone.module_in_result(name) for name in ("encoder", "encoder.layer.0", "decoder.layer.0")] == [
        "",
        "layer.0",
        None,
    ]
    assert alone.module_in_source("layer.0") == "encoder.layer.0"


def test_parts_compose_with_parts_and_with_blocks():
    text = Correspondence(part=("model.language_model", "model"))
    base = Correspondence(part=("model", ""))
    dropped = Correspondence(blocks=IndexMap.of_kept(4, [0, 2]), stack="layers")
    both = text.then(base).then(dropped)
    assert both.part == ("model.language_model", "")
    assert both.stack == "model.language_model.layers"
    assert both.module_in_result("model.language_model.layers.2.mlp") == "layers.1.mlp"
    assert both.module_in_result("model.language_model.layers.1.mlp") is None
    assert both.module_in_source("layers.1.mlp") == "model.language_model.layers.2.mlp"
    assert both.blocks_of("layers") == dropped.blocks
    inner = both.of_backbones()
    assert inner.module_in_result("layers.2.mlp") == "layers.1.mlp"
    larger = Correspondence(part=("", "wrapped"))
    assert text.then(larger).part == ("model.language_model", "wrapped.model")
    with pytest.raises(ValueError, match="encoder is no part of model"):
        text.then(Correspondence(part=("encoder", "")))


@pytest.mark.parametrize("part", [("encoder", "encoder"), ("encoder", "")])
def test_blocks_are_forgotten_where_their_stack_is_no_part_of_the_result(part):
    dropped = Correspondence(blocks=IndexMap.of_kept(2, [0]), stack="decoder.block", behind_first=True)
    alone = dropped.then(Correspondence(part=part))
    assert alone == Correspondence(part=part)
    assert alone.of_backbones().output_in_source("hidden_states.1") == "hidden_states.1"
    stack = f"{part[1]}.block".lstrip(".")
    shorter = alone.then(Correspondence(blocks=IndexMap.of_kept(4, [0, 2, 3]), stack=stack))
    assert (shorter.stack, shorter.blocks.kept) == ("encoder.block", (0, 2, 3))
    assert dropped.then(Correspondence(part=("decoder", "decoder"))).blocks == dropped.blocks


def test_a_part_survives_the_report():
    part = Correspondence.of_ids(6, 8, 6, (6, 7)).then(Correspondence(part=("bert", "")))
    found = json.loads(json.dumps(dataclasses.asdict(part)))
    assert Correspondence.from_json(found) == part
    del found["part"]
    assert Correspondence.from_json(found).part == ("", "")


@pytest.mark.parametrize(
    ("stack", "ours", "others"),
    [
        ("decoder.bert.encoder.layer", ("decoder",), ("encoder",)),
        ("text_decoder.layers", ("decoder",), ("encoder",)),
        ("prophetnet.decoder.layers", ("decoder", "decoder_ngram"), ("encoder",)),
        ("model.language_model.layers", ("language_model",), ("vision_model", "encoder")),
    ],
)
def test_hidden_states_of_a_side_are_those_of_its_stack_whatever_its_name(stack, ours, others):
    change = Correspondence(blocks=IndexMap.of_origins(3, [0, 1, 1, 2]), stack=stack)
    for side in ours:
        assert change.output_in_source(f"{side}_hidden_states.4") == f"{side}_hidden_states.3"
    for side in others:
        assert change.output_in_source(f"{side}_hidden_states.2") == f"{side}_hidden_states.2"
