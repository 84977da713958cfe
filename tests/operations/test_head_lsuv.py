"""Heads whose new layers are scaled on texts: their outputs vary with variance one, and what was trained stays."""

import pytest
import torch
import transformers
from support.families import build

import graftkit
from graftkit.running.probe_texts import PROBE_TEXTS


def recipe(source, output, **fields):
    operation = {"op": "replace_head", "task": "sequence_classification", "labels": list("abcdefgh"), **fields}
    return {
        "version": 1, "base_model": str(source), "operations": [operation], "output": str(output),
        "verify": {"outputs": False},
    }  # fmt: skip


def variance_of(directory, name):
    """Of the outputs of one layer, on the first of the probe texts, each run by itself."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    kept = []
    model.get_submodule(name).register_forward_hook(lambda _, __, output: kept.append(output.flatten()))
    with torch.inference_mode():
        for text in PROBE_TEXTS[:16]:
            model(input_ids=tokenizer(text, truncation=True, max_length=48, return_tensors="pt").input_ids)
    return torch.cat(kept).double().var().item()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = tmp_path_factory.mktemp("families")
    return {family: build(family, place / family) for family in ("roberta", "gpt2")}


def test_both_layers_of_a_head_get_unit_variance(sources, tmp_path):
    report = graftkit.apply(recipe(sources["roberta"], tmp_path / "out", init="lsuv", inner_init="lsuv"))
    layers = report.figures["operations.0.replace_head"]["lsuv"]["layers"]
    assert list(layers) == ["classifier.dense", "classifier.out_proj"]
    for name, figures in layers.items():
        assert variance_of(tmp_path / "out", name) == pytest.approx(1, abs=0.1)
        assert abs(figures["before"] - 1) > 0.1
    old = transformers.AutoModelForMaskedLM.from_pretrained(sources["roberta"]).roberta.state_dict()
    new = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").roberta.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items())


def test_a_projection_without_a_layer_before_it(sources, tmp_path):
    graftkit.apply(recipe(sources["gpt2"], tmp_path / "out", init="lsuv"))
    assert variance_of(tmp_path / "out", "score") == pytest.approx(1, abs=0.1)
    graftkit.apply(recipe(sources["gpt2"], tmp_path / "again", init="lsuv"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()


def test_where_nothing_is_new_and_where_data_decides_nothing_it_is_refused(sources, tmp_path):
    with pytest.raises(graftkit.GraftkitError, match="the head of GPT2ForSequenceClassification has no such new layer"):
        graftkit.plan(recipe(sources["gpt2"], tmp_path / "out", inner_init="lsuv"))
    with pytest.raises(graftkit.GraftkitError, match="unknown scheme 'lsuv'|must be one of"):
        graftkit.plan(
            {
                **recipe(sources["gpt2"], tmp_path / "out"),
                "operations": [{"op": "reinit", "layers": "last 1", "init": "lsuv"}],
            }
        )
