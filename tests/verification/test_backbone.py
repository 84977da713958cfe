"""A result with another head: the hidden states of the base models are compared, and a changed weight is caught."""

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.families import build

import graftkit
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.promises import Scope
from graftkit.verification.subject import Subject

#: Family, task, and a weight that is moved a little.
PLANTED = [
    ("bert_base", "token_classification", "bert.encoder.layer.1.output.dense.weight"),
    ("llama", "sequence_classification", "model.layers.0.mlp.up_proj.weight"),
    ("t5", "token_classification", "transformer.encoder.block.1.layer.1.DenseReluDense.wo.weight"),
    ("t5", "sequence_classification", "transformer.decoder.block.0.layer.2.DenseReluDense.wi.weight"),
    ("gpt2", "question_answering", "transformer.h.1.attn.c_attn.weight"),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    place, made = tmp_path_factory.mktemp("pairs"), {}

    def pair(family, task):
        if (family, task) not in made:
            source, output = build(family, place / f"{len(made)}-source"), place / f"{len(made)}-out"
            labels = {"labels": ["a", "b"]} if "classification" in task else {}
            operation = {"op": "replace_head", "task": task, **labels}
            graftkit.apply({"version": 1, "base_model": str(source), "operations": [operation], "output": str(output)})
            made[family, task] = source, output
        return made[family, task]

    return pair


def compare(source, result):
    return compare_outputs(Subject(source, result, scope=Scope.BACKBONE))


@pytest.mark.parametrize(("family", "task", "weight"), PLANTED)
def test_a_moved_weight_of_the_backbone_is_caught_in_its_layer(family, task, weight, pairs, tmp_path):
    source, result = pairs(family, task)
    assert compare(source, result).failures == ()
    broken = shutil.copytree(result, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors[weight][3, 3] += 0.5
    with safe_open(result / "model.safetensors", "pt") as file:
        save_file(tensors, broken / "model.safetensors", file.metadata())
    failures = compare(source, broken).failures
    assert failures
    assert "hidden" in failures[0]


def test_a_backbone_tensor_that_is_gone_is_caught(pairs, tmp_path):
    source, result = pairs("bert_base", "token_classification")
    broken = shutil.copytree(result, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    assert any("missing tensors" in failure for failure in compare(source, broken).failures)


def test_an_epsilon_that_changed_is_caught(pairs, tmp_path):
    source, result = pairs("bert_base", "token_classification")
    broken = shutil.copytree(result, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    assert any("hidden_states" in failure for failure in compare(source, broken).failures)


def test_the_head_alone_may_differ(pairs, tmp_path):
    source, result = pairs("bert_base", "token_classification")
    other = shutil.copytree(result, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["classifier.weight"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert compare(source, other).failures == ()
