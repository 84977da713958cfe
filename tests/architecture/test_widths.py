"""Layouts, maps of axes and miniatures: what an experiment tries, and on what."""

import json

import pytest
import torch

from graftkit.architecture.axis_maps import AxisMaps
from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.widths.fields import find_field
from graftkit.architecture.widths.growth import AxisGrowth, growths, kind
from graftkit.architecture.widths.layouts import Grouped, Repeated, grouped_layouts, repeated_layouts
from graftkit.architecture.widths.miniature import ENOUGH, miniature, small_growth

FRESH = -1


def origins(indices):
    """For each index of the result its index of the source, or FRESH."""
    return [FRESH if (origin := indices.origin(index)) is None else origin for index in range(indices.result)]


@pytest.mark.parametrize(
    ("layout", "axis", "wanted"),
    [
        (Grouped(1), AxisGrowth(2, 3, 2, 3), [0, 1, FRESH]),
        (Grouped(2), AxisGrowth(4, 6, 2, 3), [0, 1, FRESH, 2, 3, FRESH]),
        (Grouped(1, "first"), AxisGrowth(3, 4, 2, 3), [0, 1, 2, FRESH]),
        (Grouped(1, "last"), AxisGrowth(3, 4, 2, 3), [0, 1, FRESH, 2]),
        (Repeated(), AxisGrowth(4, 8, 2, 4), [0, 1, 0, 1, 2, 3, 2, 3]),
        (Repeated(tiled=True), AxisGrowth(4, 8, 2, 4), [0, 1, 2, 3, 0, 1, 2, 3]),
        (Repeated(2), AxisGrowth(4, 8, 2, 4), [0, 0, 1, 1, 2, 2, 3, 3]),
        (Repeated(fixed="first"), AxisGrowth(5, 7, 2, 4), [0, 1, 2, 3, 3, 4, 4]),
        (Repeated(fixed="spread"), AxisGrowth(6, 8, 2, 4), [0, 2, 1, 2, 3, 5, 4, 5]),  # two queries and a key in each group
    ],
)  # fmt: skip
def test_where_each_slice_stands(layout, axis, wanted):
    indices = layout.index_map(axis)
    assert origins(indices) == wanted
    assert (
        IndexMap.from_json(json.loads(json.dumps({"source": axis.old, "result": axis.new, "runs": indices.runs})))
        == indices
    )
    pieces = [(place, size) for place, _, size in indices.pieces()]
    assert [place for place, _ in pieces] == [sum(size for _, size in pieces[:number]) for number in range(len(pieces))]
    assert sum(size for _, size in pieces) == axis.new


def test_sizes_that_do_not_fit_are_no_layout():
    assert Grouped(2).index_map(AxisGrowth(3, 5, 3, 5)) is None
    assert Repeated().index_map(AxisGrowth(2, 3, 2, 3)) is None
    assert Grouped(3) not in list(grouped_layouts(AxisGrowth(4, 6, 2, 3)))
    assert all(layout.index_map(AxisGrowth(6, 8, 2, 4)) for layout in repeated_layouts(AxisGrowth(6, 8, 2, 4)))


def test_a_part_of_an_axis_is_cut_where_its_groups_end():
    fused = Grouped(2).index_map(AxisGrowth(4, 6, 2, 3))
    assert fused.cut(0, 2) == fused.cut(2, 4) == IndexMap(2, 3, ((0, 0, 2),))
    assert fused.cut(1, 3) is None
    assert Grouped(1).index_map(AxisGrowth(4, 6, 2, 3)).cut(0, 2) is None  # its run goes on


def test_maps_take_slices_and_add_gradients_up():
    repeated = AxisMaps(((0, Repeated().index_map(AxisGrowth(2, 4, 2, 4))),))
    old = torch.arange(6.0).view(2, 3)
    new = old.repeat_interleave(2, 0)
    assert all(torch.equal(*pair) for pair in [repeated.pair(old, new)])
    assert torch.equal(repeated.summed(new), 2 * old)
    assert not repeated.has_new
    assert not repeated.only_new(new).any()
    both = AxisMaps(((0, IndexMap(2, 3, ((0, 0, 2),))), (1, IndexMap(3, 4, ((0, 0, 1), (2, 1, 2))))))
    values = torch.ones(3, 4)
    assert both.fits((2, 3), (3, 4))
    assert not both.fits((2, 3), (3, 5))
    assert int(both.only_new(values).sum()) == 12 - 6
    assert both.summed(values).shape == (2, 3)


def test_correspondences_compose_through_blocks_and_json():
    width = AxisMaps(((0, IndexMap(2, 3, ((0, 0, 2),))),))
    wider = AxisMaps(((0, IndexMap(3, 6, ((0, 0, 3),))),))
    blocks = Correspondence(blocks=IndexMap(2, 3, ((0, 0, 1), (2, 1, 1))), stack="layers")
    found = Correspondence(widths={"layers.1.up": width}).then(blocks)
    found = found.then(Correspondence(widths={"layers.2.up": wider, "layers.1.up": wider}))
    assert list(found.widths) == ["layers.1.up"]  # block 1 of the result is new
    assert origins(found.widths["layers.1.up"].axes[0][1]) == [0, 1, FRESH, FRESH, FRESH, FRESH]
    import dataclasses

    assert Correspondence.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    dropped = found.then(Correspondence(blocks=IndexMap(3, 1, ((0, 0, 1),)), stack="layers"))
    assert not dropped.widths


def test_entries_of_modules_are_found_by_the_axes_beside_them():
    width = AxisMaps(((0, Grouped(2).index_map(AxisGrowth(4, 6, 2, 3))),))
    found = Correspondence(widths={"mlp.gate_up.weight": width})
    old, new = torch.arange(4.0)[None], torch.tensor([[0.0, 1, 9, 2, 3, 9]])
    assert torch.equal(*found.entries("mlp.gate_up", old, new))
    assert torch.equal(*found.entries("mlp.act", old, new))
    assert found.entries("mlp.act", old[:, :2], new[:, :3]) is None
    assert found.is_near_width("mlp.act")
    assert not found.is_near_width("attn.act")


def test_fields_have_the_names_of_transformers():
    import transformers

    config = {"model_type": "gpt2", "n_head": 4, "n_embd": 32, "vocab_size": 99}
    assert find_field(config, "num_attention_heads").path == ("n_head",)
    assert find_field(config, "n_inner") == find_field({**config, "n_inner": None}, "n_inner")
    assert find_field(config, "n_inner").value is None
    llava = json.loads(transformers.LlavaConfig().to_json_string())
    assert find_field(llava, "intermediate_size").path == ("text_config", "intermediate_size")
    assert find_field(llava, "vision_config.intermediate_size").path == ("vision_config", "intermediate_size")
    with pytest.raises(ValueError, match="did you mean 'n_inner'"):
        find_field(config, "n_iner")
    with pytest.raises(ValueError, match="is a list of 2 values here"):
        find_field(
            {"model_type": "gemma3n_text", "intermediate_size": [8, 8], "num_hidden_layers": 2}, "intermediate_size"
        )


def test_a_large_model_is_tried_small():
    """Eight billion parameters with a vocabulary of 128,256 and special tokens at its end."""
    import transformers

    built = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=6, num_key_value_heads=8,
        pad_token_id=128001, bos_token_id=128000, eos_token_id=128001,
    )  # fmt: skip
    config = {**json.loads(built.to_json_string()), "architectures": ["LlamaForCausalLM"]}
    skeleton = build_skeleton(config)
    small = miniature(config, skeleton, ("intermediate_size",))
    assert small["intermediate_size"] == 14336
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == (32, 8)
    found = build_skeleton({**small, "intermediate_size": 4})
    assert sum(torch.Size(shape).numel() for shape in found.shapes.values()) < ENOUGH
    assert {kind(name) for name in found.shapes} == {kind(name) for name in skeleton.shapes}


def test_small_values_keep_their_ratio():
    assert next(small_growth(11008, 14336)) == (43, 56)
    assert next(small_growth(8, 32)) == (4, 16)
    assert list(small_growth(3, 5))[-1] == (3, 5)
    assert list(small_growth(11008, 11009)) == [(32, 48), (128, 192), (11008, 11009)]


def test_parameters_that_come_or_go_are_no_growth(sources):
    config = json.loads((sources("llama") / "config.json").read_text())
    two, three = (build_skeleton({**config, "num_hidden_layers": count}) for count in (2, 3))
    assert growths(two, three, 2, 3) is None
