"""The config of other blocks: their number, each list of one entry per block, and what places kinds of blocks by number."""

import json

import pytest
import transformers
from support.shrink import tiny_config

from graftkit.architecture.blocks.depth import rearranged
from graftkit.architecture.blocks.kinds import first_difference
from graftkit.architecture.blocks.per_layer import per_layer_lists
from graftkit.architecture.blocks.trace import why_it_does_not_run
from graftkit.architecture.layers import layer_list
from graftkit.architecture.skeleton import build_skeleton
from graftkit.errors import InputRejected


def config_of(class_name, **fields):
    """The config.json that transformers would write of a small model."""
    model_class = getattr(transformers, class_name)
    config = tiny_config(model_class.config_class, overrides=fields)
    return json.loads(config.to_json_string()) | {"architectures": [class_name]}


def arranged(config, *order, copies=()):
    old = build_skeleton(config)
    return rearranged(config, old, layer_list(old), order, copies)


KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
ALIKE = ["full_attention"] * 3


def test_a_list_of_one_entry_per_block_goes_with_its_blocks():
    config = config_of(
        "Qwen3ForCausalLM", num_hidden_layers=4, layer_types=KINDS, use_sliding_window=True, sliding_window=16
    )
    changed, skeleton, _ = arranged(config, 0, 2, 1, 1)
    assert changed["num_hidden_layers"] == 4
    assert changed["layer_types"] == [KINDS[index] for index in (0, 2, 1, 1)]
    windows = [layer.self_attn.sliding_window is not None for layer in skeleton.model.model.layers]
    assert windows == [kind == "sliding_attention" for kind in changed["layer_types"]]


def test_a_list_that_the_class_derives_is_written_where_it_would_derive_another():
    """Qwen2 has full attention below max_window_layers and a window from there on."""
    config = config_of(
        "Qwen2ForCausalLM",
        num_hidden_layers=4,
        max_window_layers=2,
        use_sliding_window=True,
        sliding_window=16,
        layer_types=None,
    )
    del config["layer_types"]
    assert "layer_types" not in arranged(config, 0, 1, 2, 3, 3)[0]
    changed, skeleton, _ = arranged(config, 1, 2, 3)
    assert changed["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert skeleton.model.config.layer_types == changed["layer_types"]


@pytest.mark.parametrize("eos", [[1, 2], [1, 2, 3]])
def test_a_list_that_is_as_long_by_chance_stays(eos):
    config = config_of("LlamaForCausalLM", num_hidden_layers=3) | {"eos_token_id": eos}
    changed, _, _ = arranged(config, 0, 1, 2, 2)
    assert changed == {**config, "num_hidden_layers": 4}
    config = config_of("FalconH1ForCausalLM", num_hidden_layers=2)
    assert len(config["mlp_multipliers"]) == len(config["time_step_limit"]) == 2
    assert per_layer_lists(config, ("num_hidden_layers",), 2) == ()


def test_the_decoder_of_two_sides_grows_alone():
    changed, skeleton, _ = arranged(
        config_of("T5ForConditionalGeneration", num_layers=2, num_decoder_layers=2), 0, 1, 1
    )
    assert (changed["num_layers"], changed["num_decoder_layers"]) == (2, 3)
    assert (len(skeleton.model.encoder.block), len(skeleton.model.decoder.block)) == (2, 3)


def test_a_nested_config_is_changed_at_its_place():
    config = config_of("Gemma3ForConditionalGeneration")
    changed, _, _ = arranged(config, 1, 0)
    before, after = config["text_config"], changed["text_config"]
    assert after["layer_types"] == before["layer_types"][::-1]
    assert {**after, "layer_types": None} == {**before, "layer_types": None}


def test_a_number_that_places_kinds_is_moved_where_that_is_right():
    """The first two of DeepSeek's blocks are dense: a copy of one of them makes it three."""
    config = config_of("DeepseekV3ForCausalLM", num_hidden_layers=4, first_k_dense_replace=2)
    assert arranged(config, 0, 1, 2, 2, 3)[0]["first_k_dense_replace"] == 2
    changed, skeleton, _ = arranged(config, 0, 0, 1, 2, 3)
    assert changed["first_k_dense_replace"] == 3
    kinds = [type(layer.mlp).__name__ for layer in skeleton.model.model.layers]
    assert kinds == ["DeepseekV3MLP"] * 3 + ["DeepseekV3MoE"] * 2
    assert arranged(config, 1, 2, 3)[0]["first_k_dense_replace"] == 1


def test_a_number_that_no_value_makes_right_is_named():
    config = config_of("DeepseekV3ForCausalLM", num_hidden_layers=4, first_k_dense_replace=2)
    with pytest.raises(
        InputRejected, match="first_k_dense_replace places kinds of blocks by number: block 2 as block 0"
    ):
        arranged(config, 2, 1, 0, 3)


@pytest.mark.slow
def test_a_period_is_named_too():
    """Each second block of Jamba has experts."""
    config = config_of("JambaForCausalLM", num_hidden_layers=4, attn_layer_period=4, attn_layer_offset=1)
    with pytest.raises(
        InputRejected, match="config.json: .*expert_layer_period.* place kinds of blocks by number: block 1 as"
    ):
        arranged(config, 1, 0, 2, 3)
    assert arranged(config, 0, 1, 2, 3, 0)[0]["num_hidden_layers"] == 5


@pytest.mark.slow
def test_a_number_that_reaches_past_the_blocks_is_moved_when_they_come_there():
    """All of two blocks are dense below a third that is not there."""
    config = config_of("DeepseekV3ForCausalLM", num_hidden_layers=2, first_k_dense_replace=3)
    assert arranged(config, 0, 0, 1, 1)[0]["first_k_dense_replace"] == 4


def test_where_the_config_wants_another_kind_the_nearest_block_of_it_is_copied():
    """ModernBERT's first block alone has no norm."""
    config = config_of("ModernBertDecoderForCausalLM", num_hidden_layers=3, layer_types=ALIKE)
    with pytest.raises(
        InputRejected, match="block 0 as block 1: module attn_norm would be 'LayerNorm', and is 'Identity'"
    ):
        arranged(config, 0, 0, 1, 2)
    assert arranged(config, 0, 0, 1, 2, copies=(1,))[2] == (0, 1, 1, 2)


@pytest.mark.parametrize(
    ("class_name", "fields", "words"),
    [
        ("DiffLlamaForCausalLM", {}, "self_attn.lambda_init would be"),
        ("MiniCPM3ForCausalLM", {}, "residual_scale would be"),
        ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "attn.scaling would be"),
    ],
)
def test_what_a_block_computes_by_its_number_is_seen(class_name, fields, words):
    config = config_of(class_name, **fields)
    with pytest.raises(InputRejected, match=words):
        arranged(config, 0, 0, 1)


def test_a_switch_is_not_taken_for_the_number_of_its_block():
    """False in block 0 and True in block 1 are no numbers, though Python says that they equal 0 and 1."""
    old = build_skeleton(config_of("LlamaForCausalLM"))
    for index, layer in enumerate(old.model.model.layers):
        layer.is_special = bool(index)
    words = first_difference(old, old, layer_list(old), (1, 0))
    assert words == "block 1 as block 0: is_special would be False, and is True"


def test_what_only_the_operations_show_is_seen():
    """A block that scales by a number that it is given on each call, and holds nowhere."""
    config = config_of("LlamaForCausalLM", num_hidden_layers=3)
    old, new = build_skeleton(config), build_skeleton(config)
    assert first_difference(old, new, layer_list(old), range(3)) is None
    inner = new.model.model.layers[1].mlp.forward
    new.model.model.layers[1].mlp.forward = lambda x: inner(x) / 2
    words = first_difference(old, new, layer_list(old), range(3))
    assert words == "block 1 as block 1 would compute otherwise: div(2) in place of add()"


def test_blocks_that_the_class_cannot_run_are_refused():
    """Qwen3-Next counts the tokens of its cache in a block with full attention."""
    config = config_of("Qwen3NextForCausalLM", layer_types=["linear_attention", "full_attention"])
    with pytest.raises(
        InputRejected, match="Qwen3NextForCausalLM does not run with these blocks: ValueError: `get_seq_length`"
    ):
        arranged(config, 0)
    assert arranged(config, 1)[0]["layer_types"] == ["full_attention"]


def test_tables_outside_that_grow_with_the_blocks_are_refused():
    with pytest.raises(InputRejected, match="'model.embed_tokens_per_layer.weight' would be"):
        arranged(config_of("Gemma3nForCausalLM"), 0, 0, 1)


def test_without_a_number_in_the_config_there_is_no_way():
    config = config_of("LlamaForCausalLM")
    skeleton = build_skeleton(config)
    skeleton.model.model.layers.append(skeleton.model.model.layers[0])
    with pytest.raises(InputRejected, match=r"no value of config.json counts the blocks of model\.layers"):
        rearranged(config, skeleton, type(layer_list(build_skeleton(config)))("model.layers", 97), (0,))


def shape_of(skeleton, attribute):
    """What each block holds under a name, as the class name of the module."""
    return [type(layer.get_submodule(attribute)).__name__ for layer in skeleton.model.model.layers]


def test_a_list_of_numbers_says_the_new_ones():
    """Llama 4's moe_layers, and numbers in it of blocks that are gone, which a later insertion would bring back."""
    config = config_of(
        "Llama4ForCausalLM", num_hidden_layers=4, layer_types=None, no_rope_layers=[1, 1, 0, 1], moe_layers=[1, 3]
    )
    changed, skeleton, _ = arranged(config, 3, 0, 2, 2, 1)
    assert changed["moe_layers"] == [0, 4]
    assert changed["no_rope_layers"] == [1, 1, 0, 0, 1]
    assert shape_of(skeleton, "feed_forward") == ["Llama4TextMoe", *["Llama4TextMLP"] * 3, "Llama4TextMoe"]
    assert arranged(config, 0, 1, 2)[0]["moe_layers"] == [1]


def test_a_list_of_numbers_says_what_a_period_said():
    """Each second block of this Qwen2-MoE is sparse, and the list of dense ones is empty."""
    config = config_of("Qwen2MoeForCausalLM", num_hidden_layers=4, layer_types=None, decoder_sparse_step=2)
    changed, skeleton, _ = arranged(config, 1, 0, 0, 3)
    assert (changed["decoder_sparse_step"], changed["mlp_only_layers"]) == (1, [1, 2])
    assert shape_of(skeleton, "mlp") == [
        "Qwen2MoeSparseMoeBlock",
        "Qwen2MoeMLP",
        "Qwen2MoeMLP",
        "Qwen2MoeSparseMoeBlock",
    ]


def test_numbers_that_are_not_those_of_blocks_stay():
    """A list that is no block's, though blocks of these numbers move."""
    config = config_of("Qwen2MoeForCausalLM", num_hidden_layers=4, layer_types=None, mlp_only_layers=[0])
    config |= {"keys_to_ignore_at_inference": [0, 1], "eos_token_id": [0, 1], "made_up": [0, 1]}
    changed, _, _ = arranged(config, 2, 1, 0, 3)
    assert changed == {**config, "mlp_only_layers": [2]}


def test_what_is_said_of_a_block_under_its_number_goes_with_it():
    """Gemma 4's blocks with full attention have wider heads, and ids of labels are no numbers of blocks."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = config_of("Gemma4ForCausalLM", num_hidden_layers=4, hidden_size_per_layer_input=0, layer_types=kinds)
    config |= {"per_layer_config": {"1": {"head_dim": 32}, "3": {"head_dim": 32}}, "id2label": {"0": "no", "1": "yes"}}
    changed, skeleton, _ = arranged(config, 0, 0, 1, 1, 2, 3)
    assert changed["per_layer_config"] == {str(place): {"head_dim": 32} for place in (2, 3, 5)}
    assert [layer.self_attn.head_dim for layer in skeleton.model.model.layers] == [16, 16, 32, 32, 16, 32]
    assert changed["id2label"] == config["id2label"]
    changed, _, _ = arranged(config, 0, 2, 3)
    assert changed["per_layer_config"] == {"2": {"head_dim": 32}}


def test_a_flag_that_depends_on_the_last_block_of_a_kind_is_the_reason():
    config = config_of("Gemma4ForCausalLM", hidden_size_per_layer_input=0)
    with pytest.raises(
        InputRejected, match="block 1 as block 1: self_attn.store_full_length_kv would be False, and is True"
    ):
        arranged(config, 0, 1, 1)


def test_a_list_that_only_the_forward_reads_is_seen_when_it_runs():
    """Granite's angles of rotation, one for each block."""
    config = config_of("GraniteSWAForCausalLM") | {"layer_rope_theta": [100.0, 900.0]}
    assert arranged(config, 1, 0, 0)[0]["layer_rope_theta"] == [900.0, 100.0, 100.0]


def test_a_cache_that_another_number_counts_grows_along():
    """BART's decoder alone makes its cache by the number of the encoder's blocks, of which it has none."""
    changed, skeleton, _ = arranged(config_of("BartForCausalLM"), 0, 0, 1)
    assert (changed["encoder_layers"], changed["decoder_layers"]) == (3, 3)
    assert why_it_does_not_run(skeleton) == ""
    changed, _, _ = arranged(config_of("BartForConditionalGeneration"), 0, 0, 1)
    assert (changed["encoder_layers"], changed["decoder_layers"]) == (2, 3)


def test_lists_follow_the_block_that_is_copied_instead():
    """ModernBERT's first block has no norm, and its second sees a window: the copy of the second sees one too."""
    config = config_of("ModernBertForMaskedLM")
    changed, _, order = arranged(config, 0, 0, 1, 1, copies=(1, 3))
    assert order == (0, 1, 1, 1)
    assert changed["layer_types"] == [config["layer_types"][index] for index in order]


def test_the_number_of_blocks_that_share_keys_follows_them():
    """The last two of Gemma 4's blocks take keys and values of the last ones before them."""
    kinds = ["sliding_attention", "full_attention"] * 3
    config = config_of(
        "Gemma4ForCausalLM", num_hidden_layers=6, layer_types=kinds, num_kv_shared_layers=2, hidden_size_per_layer_input=0,

    )  # fmt: skip
    config["per_layer_config"] = {str(place): {"head_dim": 32} for place in (1, 3, 5)}
    assert arranged(config, 0, 0, 1, 2, 3, 4, 5)[0]["num_kv_shared_layers"] == 2
    changed, skeleton, _ = arranged(config, 0, 1, 2, 3, 5)
    assert changed["num_kv_shared_layers"] == 1
    assert [layer.self_attn.is_kv_shared_layer for layer in skeleton.model.model.layers] == [False] * 4 + [True]
    with pytest.raises(
        InputRejected, match="num_kv_shared_layers places kinds of blocks by number: block 1 as block 1"
    ):
        arranged(config, 0, 1, 4, 2, 3, 5)
