"""The builder of small checkpoints of any class."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    InstructBlipConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Qwen2VLConfig,
    Qwen3NextConfig,
)

from graftkit.errors import VerificationFailed
from support.shrink import _one_of_each, tiny_config
from support.tiny import NotBuilt, _check_reload, _make_whole, build, classes, forward

TEXTS = ("hello there, world", "def f(x):\n\treturn x", "日本語 and emoji 🙂", "")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    build("LlamaForCausalLM", directory, config_overrides={"attention_bias": True})
    return directory


def digest(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_no_tensor_is_degenerate(llama):
    for name, tensor in load_file(llama / "model.safetensors").items():
        rows = tensor.reshape(len(tensor), -1)
        assert tensor.isfinite().all(), name
        assert rows.abs().sum(1).min() > 0, name
        assert len(torch.unique(rows, dim=0)) == len(rows), name
        if "norm" in name:
            assert abs(float(tensor.mean()) - 1) < 0.1, name


def test_config_tokenizer_and_tables_agree(llama):
    config = json.loads((llama / "config.json").read_text())
    generation = json.loads((llama / "generation_config.json").read_text())
    raw = Tokenizer.from_file(str(llama / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(llama)
    assert config["vocab_size"] == 331
    assert len(raw.get_vocab()) == len(loaded) == 323
    assert sorted(raw.get_vocab().values()) == list(range(323))
    for role in ("pad", "bos", "eos"):
        assert config[f"{role}_token_id"] == generation[f"{role}_token_id"] == getattr(loaded, f"{role}_token_id")
    for text in TEXTS:
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert ids == raw.encode(text, add_special_tokens=False).ids
        assert loaded.unk_token_id not in ids


def test_the_seed_decides_every_byte(llama, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    build("LlamaForCausalLM", again, config_overrides={"attention_bias": True})
    build("LlamaForCausalLM", other, config_overrides={"attention_bias": True}, seed=1)
    assert digest(again) == digest(llama)
    assert digest(other)["model.safetensors"] != digest(llama)["model.safetensors"]


def test_size_dtype_tie_and_shards_are_as_asked(tmp_path):
    build(
        "LlamaForCausalLM",
        tmp_path,
        vocab_size=337,
        tokenizer_size=337,
        dtype="bfloat16",
        tie=True,
        max_shard_size="100KB",
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {name: tensor for shard in set(index.values()) for name, tensor in load_file(tmp_path / shard).items()}
    assert len(set(index.values())) > 1
    assert "lm_head.weight" not in tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert len(tensors["model.embed_tokens.weight"]) == 337
    assert len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab()) == 337


@pytest.mark.parametrize(
    "name",
    ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM", "BertForMaskedLM", "BertModel",
     "T5ForConditionalGeneration", "BartForConditionalGeneration", "LlavaForConditionalGeneration", "MambaForCausalLM"],
)  # fmt: skip
def test_families_build_and_run(name, tmp_path):
    built = build(name, tmp_path)
    assert built.forward_error is None
    assert built.parameters < 500_000


def test_vocabularies_that_differ_stay_different():
    config = tiny_config(InstructBlipConfig, vocab_size=331)
    assert config.text_config.vocab_size == 331
    assert config.qformer_config.vocab_size == 337


def test_ids_of_special_tokens_are_live_and_differ():
    config = tiny_config(Qwen2VLConfig, vocab_size=331, live=300)
    ids = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    assert len(set(ids)) == 4
    assert all(3 < index < 300 for index in ids)


def test_sizes_that_depend_on_one_another_fit():
    mamba = tiny_config(Mamba2Config)
    assert mamba.num_heads * mamba.head_dim == mamba.expand * mamba.hidden_size
    assert set(tiny_config(Qwen3NextConfig).layer_types) == {"linear_attention", "full_attention"}
    assert _one_of_each(["a", "a", "b", "a", "c", "a"], 3) == ["b", "c", "a"]
    assert _one_of_each(["a", "a", "a"], 2) == ["a", "a"]


def test_every_kind_has_classes_once():
    for kind, least in (
        ("causal_lm", 150),
        ("masked_lm", 40),
        ("seq2seq_lm", 30),
        ("vision_language", 80),
        ("base", 300),
    ):
        named = classes(kind)
        assert len(named) == len(set(named)) >= least


def test_a_config_that_no_scale_can_build_says_why(tmp_path):
    with pytest.raises(NotBuilt, match="hidden_act|nonsense"):
        build("LlamaForCausalLM", tmp_path, config_overrides={"hidden_act": "nonsense"})


def test_a_checkpoint_that_does_not_load_whole_is_not_passed_on(llama, tmp_path):
    tensors = load_file(llama / "model.safetensors")
    del tensors["lm_head.weight"]
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((llama / name).read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotBuilt, match=r"lm_head\.weight"):
        _check_reload(LlamaForCausalLM, tmp_path)


def test_what_a_class_leaves_unfilled_is_given_values():
    module = torch.nn.Linear(2, 2)
    module.weight.data[0, 0] = float("nan")
    module.register_buffer("ids", torch.full((6,), torch.iinfo(torch.int64).max))
    _make_whole(module)
    assert module.weight.isfinite().all()
    assert module.ids.tolist() == [0, 1, 2, 3, 0, 1]


def test_forward_says_what_the_class_wanted(llama):
    model = LlamaForCausalLM.from_pretrained(llama)
    with pytest.raises(VerificationFailed, match="IndexError: index out of range"):
        forward(model, torch.tensor([[400]]))
