"""What a class says of its layers and parameters: layouts, fresh values, the main stack."""

import contextlib

import pytest
import torch
import transformers
from support.shrink import HINTS, SCALES, tiny_config
from support.tiny import classes

from graftkit.architecture.fresh_values import own_values
from graftkit.architecture.layers import LayerList, layer_list
from graftkit.architecture.parameters import is_parameter, layout_of, text_value
from graftkit.architecture.skeleton import Skeleton
from graftkit.errors import InputRejected
from graftkit.initializers.fans import CONV1D, EMBEDDING, LINEAR, Layout, conv, experts, fans


def skeleton(class_name):
    """The class at the first scale that can be built, on the meta device."""
    model_class = getattr(transformers, class_name)
    for scale in SCALES:
        with contextlib.suppress(Exception), torch.device("meta"):
            config = tiny_config(model_class.config_class, vocab_size=331, live=320, scale=scale,
                                 hints=HINTS.get(class_name), overrides=None)  # fmt: skip
            model = model_class(config)
            return Skeleton(class_name, model, {key: tuple(v.shape) for key, v in model.state_dict().items()}, {})
    pytest.skip(f"no small {class_name}")
    return None


def first(skeleton_, ending):
    return next(name for name in skeleton_.shapes if name.endswith(ending))


LAYOUTS = [
    ("LlamaForCausalLM", "q_proj.weight", LINEAR),
    ("LlamaForCausalLM", "embed_tokens.weight", EMBEDDING),
    ("GPT2LMHeadModel", "c_fc.weight", CONV1D),
    ("GPT2LMHeadModel", "c_attn.weight", Layout(1, 0, parts=(64, 64, 64))),
    ("GPT2LMHeadModel", "attn.c_proj.weight", CONV1D),
    ("GPTNeoXForCausalLM", "query_key_value.weight", Layout(parts=(64, 64, 64))),
    ("Phi3ForCausalLM", "qkv_proj.weight", Layout(parts=(64, 32, 32))),
    ("Phi3ForCausalLM", "gate_up_proj.weight", Layout(parts=(96, 96))),
    ("Phi3ForCausalLM", "o_proj.weight", LINEAR),
    ("KimiLinearForCausalLM", "q_proj.weight", LINEAR),
    ("MixtralForCausalLM", "experts.down_proj", experts()),
    ("MixtralForCausalLM", "mlp.gate.weight", LINEAR),
    ("MambaForCausalLM", "conv1d.weight", conv(128)),
    ("MambaForCausalLM", "A_log", None),
    ("BertForMaskedLM", "LayerNorm.weight", None),
    ("BertForMaskedLM", "query.bias", None),
]


@pytest.mark.parametrize(("class_name", "ending", "layout"), LAYOUTS)
def test_layouts_are_told_by_the_class(class_name, ending, layout):
    found = skeleton(class_name)
    assert layout_of(found, first(found, ending)) == layout


@pytest.mark.parametrize(
    ("class_name", "transposed", "interleaved"),
    [
        ("MixtralForCausalLM", False, False),
        ("GptOssForCausalLM", True, True),
        ("AriaForConditionalGeneration", True, False),
    ],
)
def test_gate_and_up_of_fused_experts(class_name, transposed, interleaved):
    found = skeleton(class_name)
    name = first(found, "experts.gate_up_proj")
    layout = layout_of(found, name)
    shape = found.shapes[name]
    outputs = shape[2 if transposed else 1]
    assert (layout.stack, layout.output, layout.input) == (1, int(transposed), int(not transposed))
    assert layout.parts == ((1, 1) if interleaved else (outputs // 2,) * 2)
    assert [f.fan_out for f in fans(shape, layout)] == [outputs // 2] * 2
    assert fans(shape, layout)[0].fan_in == text_value(found, "hidden_size")


@pytest.mark.parametrize(
    ("class_name", "ending", "expected"),
    [
        ("LlamaForCausalLM", "input_layernorm.weight", 1.0),
        ("Gemma2ForCausalLM", "input_layernorm.weight", 0.0),
        ("BertForMaskedLM", "LayerNorm.bias", 0.0),
        ("GPT2LMHeadModel", "c_fc.bias", 0.0),
        ("MambaForCausalLM", "mixer.D", 1.0),
        ("Glm4MoeForCausalLM", "e_score_correction_bias", 0.0),
    ],
)
def test_fresh_values_are_the_classs_own(class_name, ending, expected):
    found = skeleton(class_name)
    name = first(found, ending)
    values = own_values(found, name, 0)
    assert torch.equal(values, torch.full(found.shapes[name], expected))
    assert is_parameter(found, name) != name.endswith("e_score_correction_bias")


def test_what_a_class_samples_depends_on_the_seed_alone():
    found = skeleton("MambaForCausalLM")
    name = first(found, "dt_proj.bias")
    before = torch.get_rng_state()
    one, again, other = (own_values(found, name, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator is as it was"


def test_what_a_class_leaves_open_is_none():
    found = skeleton("ApertusForCausalLM")
    assert own_values(found, first(found, "alpha_p"), 0) is None


@pytest.mark.parametrize(
    ("class_name", "path"),
    [
        ("LlamaForCausalLM", "model.layers"),
        ("BertForMaskedLM", "bert.encoder.layer"),
        ("ModernBertForMaskedLM", "model.layers"),
        ("T5ForConditionalGeneration", "decoder.block"),
        ("BartForConditionalGeneration", "model.decoder.layers"),
        ("LlavaForConditionalGeneration", "model.language_model.layers"),
        ("MambaForCausalLM", "backbone.layers"),
    ],
)
def test_the_main_stack(class_name, path):
    found = skeleton(class_name)
    assert layer_list(found) == LayerList(path, text_value(found, "num_hidden_layers"))
    assert any(name.startswith(layer_list(found).prefix(1)) for name in found.shapes)


@pytest.mark.parametrize(
    ("class_name", "words"), [("AlbertForMaskedLM", "no list of layers"), ("XLMModel", "4 lists of layers: ")]
)
def test_what_is_no_single_stack_is_refused(class_name, words):
    with pytest.raises(InputRejected, match=words):
        layer_list(skeleton(class_name))


#: Layers that share weights, lie in several lists, or stand beside another list of the same length.
NO_STACK = {
    "BltForCausalLM", "GitForCausalLM", "HrmTextForCausalLM", "Phi4MultimodalForCausalLM", "XLMWithLMHeadModel",
    "AlbertForMaskedLM", "FlaubertWithLMHeadModel", "PerceiverForMaskedLM",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm", "seq2seq_lm"])
def test_every_language_model_has_a_stack_layouts_and_fresh_values(kind):
    seen = 0
    for class_name in classes(kind):
        try:
            found = skeleton(class_name)
        except pytest.skip.Exception:
            continue
        seen += 1
        try:
            assert layer_list(found).count > 0
        except InputRejected:
            assert class_name in NO_STACK, class_name
        for name in found.shapes:
            layout = layout_of(found, name)
            if layout is not None and layout.stack and "gate_up" in name:
                assert fans(found.shapes[name], layout)[0].fan_in == text_value(found, "hidden_size"), (
                    class_name,
                    name,
                )
            elif layout is not None:
                assert min(fans(found.shapes[name], layout)[0]) > 0, (class_name, name)
    assert seen > 30
