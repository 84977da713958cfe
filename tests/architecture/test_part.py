"""Which tensors of a model are those of another class, and what a part's config is."""

import json

import pytest
from support.recipes import config_of

from graftkit.architecture.part import find_part
from graftkit.architecture.part_config import part_document, part_skeleton
from graftkit.architecture.skeleton import build_skeleton
from graftkit.errors import InputRejected

#: Family -> class of a part -> the module that both have, as the whole and as the part call it.
PARTS = {
    ("llava", "LlamaForCausalLM"): ("model.language_model", "model"),
    ("llava", "LlamaModel"): ("model.language_model", ""),
    ("llava", "CLIPVisionModel"): ("model.vision_tower", ""),
    ("t5", "T5EncoderModel"): ("encoder", "encoder"),
    ("bart", "BartForCausalLM"): ("model.decoder", "model.decoder"),
    ("bert", "BertModel"): ("bert", ""),
    ("llama", "LlamaModel"): ("model", ""),
}


@pytest.mark.parametrize(("family", "architecture"), PARTS)
def test_the_shared_module_and_every_tensor_of_it_are_found(family, architecture, sources):
    config = config_of(sources(family))
    whole, part = build_skeleton(config), part_skeleton(config, architecture)
    found = find_part(whole, part)
    theirs, ours = PARTS[family, architecture]
    assert found.modules == (theirs, ours)
    assert all(whole.shapes[there] == part.shapes[here] for here, there in found.names.items())
    assert {name for name in part.shapes if name not in found.names} <= {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_class_of_other_tensors_is_refused(sources):
    whole = build_skeleton(config_of(sources("llama")))
    other = build_skeleton(config_of(sources("t5")))
    shapes = {name: (*shape, 1) for name, shape in other.shapes.items()}
    with pytest.raises(InputRejected, match="no tensor of T5ForConditionalGeneration is in LlamaForCausalLM"):
        find_part(whole, type(other)(other.architecture, other.model, shapes, other.tied))


def test_two_parts_that_fit_equally_well_are_told_apart_by_config_or_refused(sources, monkeypatch):
    """The towers of this pair have one shape; only the second is a decoder."""
    import transformers

    ids = {"vocab_size": 61, "pad_token_id": 0}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2} | ids
    encoder, decoder = transformers.BertConfig(**small), transformers.BertConfig(**small, is_decoder=True)
    both = transformers.EncoderDecoderConfig(encoder=encoder.to_dict(), decoder=decoder.to_dict())
    config = {**json.loads(both.to_json_string(use_diff=False)), "architectures": ["EncoderDecoderModel"]}
    whole, part = build_skeleton(config), part_skeleton(config, "BertModel")
    assert find_part(whole, part).modules == ("encoder", "")
    monkeypatch.setattr("graftkit.architecture.part._config", lambda *_: None)
    shapes = {name: shape for name, shape in part.shapes.items() if "pooler" not in name}
    with pytest.raises(
        InputRejected, match="BertModel may be more than one part of EncoderDecoderModel: 'encoder' or 'decoder.bert'"
    ):
        find_part(whole, type(part)(part.architecture, part.model, shapes, part.tied))


def test_the_part_of_a_config_is_read_as_it_was_inside(sources):
    config = config_of(sources("llava"))
    part = part_skeleton(config, "LlamaForCausalLM")
    document = part_document(config, part)
    assert (document["architectures"], document["model_type"]) == (["LlamaForCausalLM"], "llama")
    inside = build_skeleton(config).model.config.text_config.to_dict()
    alone = build_skeleton(document).model.config.to_dict()
    own = {"architectures", "transformers_version", "dtype", "_name_or_path"}
    assert {key: value for key, value in alone.items() if key not in own} == {
        key: value for key, value in inside.items() if key not in own
    }


def test_a_class_with_a_config_of_its_own_gets_the_values_that_it_knows(sources):
    """LLaVA's Llama as a Mistral: another config class with fields of the same names."""
    config = config_of(sources("llava"))
    document = part_document(config, part_skeleton(config, "MistralForCausalLM"))
    assert document["model_type"] == "mistral"
    built = build_skeleton(document).model.config
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size"):
        assert getattr(built, name) == config["text_config"][name]
