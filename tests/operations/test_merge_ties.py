"""What a merge makes of tied tables: one where the adapter does the same to both, two where it does not."""

import copy
import importlib
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.adapters import edit_adapter, load_adapted, make_adapter
from support.families import build

from graftkit import engine
from graftkit.errors import InputRejected, VerificationFailed

CAUSAL, LLAMA, FLAG = "CAUSAL_LM", "LlamaForCausalLM", "tie_word_embeddings"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"

SAVED = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "task_type": CAUSAL}
#: Adapters that peft itself keeps tied: a copy of the table for each side, and a product that lies transposed in one of
#: them. peft adds to the lists that it is given.
ENSURED = {
    "saved": SAVED,
    "factors": {"target_modules": ["q_proj", "embed_tokens"], "task_type": CAUSAL},
    "token rows": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [7, 9], "lm_head": [7, 9]},
    },
}


def recipe(source, adapter, output, **more):
    merge = {"op": "merge_adapter", "adapter": str(adapter), **more}
    return {"version": 1, "base_model": str(source), "operations": [merge], "output": str(output)}


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def logits(model):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def copied_table(tensors):
    """The adapter's tensors with the head as a copy of the input table."""
    head, table = (next(name for name in tensors if part in name) for part in ("lm_head", "embed_tokens"))
    return {**tensors, head: tensors[table].clone()}


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return build("llama_tied", tmp_path_factory.mktemp("tied") / "source")


@pytest.fixture(scope="module")
def equal(tied, tmp_path_factory):
    """An adapter that holds one table twice."""
    directory = tmp_path_factory.mktemp("equal")
    _, adapter = make_adapter(directory, LLAMA, base=tied, **SAVED)
    return edit_adapter(adapter, directory / "equal", copied_table)


@pytest.mark.parametrize("config", ENSURED.values(), ids=ENSURED)
def test_tables_that_peft_keeps_tied_stay_one_table(tied, tmp_path, config):
    import transformers

    _, adapter = make_adapter(tmp_path, LLAMA, base=tied, ensure_weight_tying=True, **copy.deepcopy(config))
    report = engine.apply(recipe(tied, adapter, tmp_path / "out"))
    assert config_of(tmp_path / "out") == config_of(tied)
    assert load_file(tmp_path / "out/model.safetensors").keys() == load_file(tied / "model.safetensors").keys()
    assert f"{HEAD}, {TABLE} stay tied: the adapter changes them alike" in report.plan.outcomes[0].notes
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(merged) - logits(load_adapted(tied, adapter, LLAMA))).abs().max() < 1e-5


@pytest.mark.parametrize("inner", [True, False], ids=["flag in both configs", "flag outside alone"])
def test_equal_tables_keep_the_flags_of_a_nested_config(tmp_path, inner):
    llava = "LlavaForConditionalGeneration"
    source = build("llava", tmp_path / "source")
    config = config_of(source)
    text = {key: value for key, value in config["text_config"].items() if key != FLAG} | ({FLAG: True} if inner else {})
    (source / "config.json").write_text(json.dumps({**config, FLAG: True, "text_config": text}))
    tensors = load_file(source / "model.safetensors")
    tensors.pop(next(name for name in tensors if "lm_head" in name))
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    _, adapter = make_adapter(tmp_path, llava, base=source, **SAVED)
    equal = edit_adapter(adapter, tmp_path / "equal", copied_table)
    engine.apply(recipe(source, equal, tmp_path / "out"))
    assert config_of(tmp_path / "out") == config_of(source)
    assert load_file(tmp_path / "out/model.safetensors").keys() == tensors.keys()


def test_equal_tables_of_a_base_that_stores_both_are_written_equal(tied, equal, tmp_path):
    source = shutil.copytree(tied, tmp_path / "twice")
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, HEAD: tensors[TABLE].clone()}, source / "model.safetensors", {"format": "pt"})
    engine.apply(recipe(source, equal, tmp_path / "out", base="accept"))
    written = load_file(tmp_path / "out/model.safetensors")
    assert written[HEAD].equal(written[TABLE])
    assert not written[HEAD].equal(tensors[TABLE])
    assert config_of(tmp_path / "out")[FLAG] is True


def test_tables_that_differ_in_one_value_are_untied(tied, equal, tmp_path):
    def one_value(tensors):
        tensors[next(name for name in tensors if "lm_head" in name)][-1, -1] += 1
        return tensors

    other = edit_adapter(equal, tmp_path / "other", one_value)
    report = engine.apply(recipe(tied, other, tmp_path / "out"))
    written = load_file(tmp_path / "out/model.safetensors")
    assert (written[HEAD] != written[TABLE]).sum() == 1
    assert config_of(tmp_path / "out")[FLAG] is False
    assert any(f"{HEAD} was tied and gets a copy of its own" in note for note in report.plan.outcomes[0].notes)


@pytest.mark.parametrize("spoilt", ["lm_head.lora_A", "lm_head.lora_B"])
def test_factors_that_differ_in_one_value_are_untied(tied, tmp_path, spoilt):
    _, adapter = make_adapter(tmp_path, LLAMA, base=tied, ensure_weight_tying=True, **copy.deepcopy(ENSURED["factors"]))

    def one_value(tensors):
        tensors[next(name for name in tensors if spoilt in name)][-1, -1] += 1
        return tensors

    other = edit_adapter(adapter, tmp_path / "other", one_value)
    changed = engine.plan(recipe(tied, other, tmp_path / "out")).outcomes[0].checkpoint
    assert changed.config[FLAG] is False
    assert HEAD in changed.tensors


def test_equal_tables_that_were_untied_all_the_same_would_not_be_written(tied, equal, tmp_path, monkeypatch):
    operation = importlib.import_module("graftkit.operations.merge_adapter")
    monkeypatch.setattr(operation, "equal_edits", lambda one, other: False)
    with pytest.raises(VerificationFailed, match="were tied and are two tensors now, equal still"):
        engine.apply(recipe(tied, equal, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}], ids=str)
def test_one_of_several_tables_that_the_class_ties_together_is_refused_when_planned(tmp_path, config):
    bart = "BartForConditionalGeneration"
    source = build("bart", tmp_path / "source")
    _, adapter = make_adapter(tmp_path, bart, base=source, **{"target_modules": ["q_proj"], **config})
    with pytest.raises(InputRejected, match="adapter: does not change lm_head.weight, .* alike") as caught:
        engine.plan(recipe(source, adapter, tmp_path / "out"))
    assert f"{bart} ties all of them or none: model.decoder.embed_tokens.weight, model.encoder" in str(caught.value)
