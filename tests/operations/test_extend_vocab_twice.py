"""Two extend_vocab in one recipe: the second makes its rows of what the first has left, and both are verified as one change."""

import json

import pytest
from safetensors.torch import load_file
from support.families import ROWS, build

from graftkit import engine

FIRST = {"op": "extend_vocab", "special_tokens": ["<|one|>", "<|two|>"]}
SECOND = {"op": "extend_vocab", "tokens": ["zqxj"], "special_tokens": ["<|three|>"]}


def apply(source, output, *operations):
    recipe = {"version": 1, "base_model": str(source), "operations": list(operations), "output": str(output)}
    return engine.apply(recipe)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "bert"])
def test_the_second_stands_on_the_first(family, tmp_path):
    source = build(family, tmp_path / "source", tokens=ROWS)
    report = apply(source, tmp_path / "out", FIRST, SECOND)
    tokens = report.plan.new_tokens
    assert sorted(tokens.values()) == list(range(ROWS, ROWS + 4))
    assert [entry.passed for entry in report.tokenization] == [True]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["vocab_size"] == ROWS + 4
    ids = report.plan.correspondence.ids
    assert (ids.source, ids.result, ids.fresh) == (ROWS, ROWS + 4, tuple(range(ROWS, ROWS + 4)))
    grown = [item for item in report.plan.tensors if item.kind == "patched"]
    assert grown
    assert all(item.old_shape[0] == ROWS and item.rows == 4 and item.operation == "extend_vocab" for item in grown)
    if report.outputs.distribution is not None:
        assert report.outputs.distribution.bound_kind == "log(1 + k max p)"
        assert report.outputs.distribution.excess <= 0


def test_the_bytes_are_those_of_two_recipes_one_after_the_other(tmp_path):
    source = build("llama", tmp_path / "source", tokens=ROWS)
    apply(source, tmp_path / "both", FIRST, SECOND)
    apply(source, tmp_path / "first", FIRST)
    apply(tmp_path / "first", tmp_path / "second", SECOND)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "second"))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    tokenizers = [json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("both", "second")]
    assert tokenizers[0] == tokenizers[1]
