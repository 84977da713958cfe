"""`verify A B` fails on every value of a config that changes what is computed, and on no other."""

import json
import shutil

import numpy as np
import pytest
from support.families import ROWS, build

import graftkit
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.compare import verify


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama") / "source", tokens=ROWS)


@pytest.fixture
def changed(source, tmp_path):
    def make(name="config.json", **values):
        target = tmp_path / "changed"
        shutil.copytree(source, target)
        document = json.loads((target / name).read_text())
        for key, value in values.items():
            if value is None:
                document.pop(key)
            else:
                document[key] = value
        (target / name).write_text(json.dumps(document))
        return str(target)

    return make


def found(source, target, check="config"):
    return verify(str(source), target, outputs=False).found[check]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps was 1e-06, now 0.001"),
        ({"attention_dropout": 0.5}, "attention_dropout was 0.0, now 0.5"),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, "rope_theta was 10000.0, now 5.0"),
        ({"dtype": None}, "dtype was 'float32', now not set"),
        ({"pad_token_id": 7}, "pad_token_id was 0, now 7"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings was False, now True"),
    ],
)
def test_a_value_that_changes_what_is_computed_fails(source, changed, values, words):
    failures = found(source, changed(**values))
    assert len(failures) == 1
    assert words in failures[0]


@pytest.mark.parametrize(
    "values", [{"transformers_version": "4.0.0"}, {"mlp_bias": None}, {"_name_or_path": "x"}, {"use_cache": False}]
)
def test_a_value_that_only_describes_or_is_the_default_passes(source, changed, values):
    assert found(source, changed(**values)) == ()


def test_generation_settings_count(source, changed):
    assert "temperature was not set, now 0.3" in found(source, changed("generation_config.json", temperature=0.3))[0]


def test_a_role_that_moves_to_another_old_token_fails(source, changed):
    failures = found(source, changed("tokenizer_config.json", eos_token="<s>"))
    assert failures == ("config: eos_token was '</s>', now it is the old token '<s>'",)


def test_what_a_recipe_adds_passes(source, tmp_path):
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>"], "roles": {"eos_token": "<|end|>"}}
    recipe = {"version": 1, "base_model": str(source), "operations": [operation], "output": str(tmp_path / "out")}
    graftkit.apply({**recipe, "verify": {"outputs": False}})
    assert found(source, str(tmp_path / "out")) == ()


def test_a_value_that_is_not_finite_is_said(source, changed):
    from pathlib import Path

    target = changed()
    name = "model.layers.0.self_attn.k_proj.weight"
    tensor = read_header(Path(target) / "model.safetensors").tensors[name]
    values = np.memmap(tensor.path, np.float32, "r+", tensor.offset, tensor.shape)
    values[2, 3] = np.nan
    values.flush()
    assert found(source, target, "bytes") == (
        f"structure: tensor {name!r}: 1 rows changed, with values that are not finite",
    )
