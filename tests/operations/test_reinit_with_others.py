"""reinit beside other operations in one recipe: what each promises is checked, and what cannot be is refused."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support.families import build

import graftkit

HEAD = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b"]}
TOP, POOLER = {"op": "reinit", "layers": "last 1"}, {"op": "reinit", "parameters": ["*pooler*"]}
VOCABULARY = {"op": "extend_vocab", "tokens": ["zqx"]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = tmp_path_factory.mktemp("sources")
    return {family: build(family, place / family) for family in ("bert_base", "llama", "roberta")}


def apply(source, output, *operations):
    return graftkit.apply({"version": 1, "base_model": str(source), "operations": [*operations], "output": str(output)})


@pytest.mark.parametrize("operations", [(HEAD, TOP, POOLER), (TOP, HEAD, POOLER)], ids=["head first", "layers first"])
def test_a_classifier_for_few_samples(operations, sources, tmp_path):
    report = apply(sources["bert_base"], tmp_path / "out", *operations)
    assert report.verdict.startswith("verified (intentional)")
    hidden = [item for item in report.outputs.comparisons if "hidden" in item.name]
    assert any(not item.bitwise for item in hidden)
    assert all(item.bitwise for item in hidden if item.name.endswith(("hidden_states.0", "hidden_states.1")))
    model, info = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not model.bert.pooler.dense.bias.any()
    old = load_file(sources["bert_base"] / "model.safetensors")
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, old["encoder.layer.0.output.dense.weight"])


def test_the_order_of_operations_changes_no_bits_of_other_places(sources, tmp_path):
    for name, operations in (("a", (TOP, HEAD)), ("b", (TOP, POOLER, HEAD))):
        apply(sources["bert_base"], tmp_path / name, *operations)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    different = {name for name in a if not torch.equal(a[name], b[name])}
    assert different == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_new_tokens_and_fresh_layers(sources, tmp_path):
    for name, operations in (("before", (VOCABULARY, TOP)), ("after", (TOP, VOCABULARY))):
        report = apply(sources["llama"], tmp_path / name, *operations)
        assert report.outputs.measured
        assert report.plan.new_tokens == {"zqx": 320}


def test_rows_are_made_of_the_embeddings_as_an_earlier_operation_left_them(sources, tmp_path):
    embeddings = {"op": "reinit", "parameters": ["*embed_tokens*"]}
    apply(sources["llama"], tmp_path / "out", embeddings, VOCABULARY)
    table = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    source = load_file(sources["llama"] / "model.safetensors")["model.embed_tokens.weight"]
    assert not table[:320].equal(source[:320])
    wanted = table[:320].double().mean(0).to(table.dtype)
    assert (table[320] - wanted).abs().max() <= 2**-20 * wanted.abs().max()


@pytest.mark.parametrize(("field", "part"), [("init", "out_proj"), ("inner_init", "dense")])
def test_a_head_by_mup_has_its_learning_rates_written(field, part, sources, tmp_path):
    apply(sources["roberta"], tmp_path / "out", {**HEAD, field: {"scheme": "mup", "base_width": 8}})
    written = json.loads((tmp_path / "out" / "lr_multipliers.json").read_text())
    assert written == {f"classifier.{part}.weight": 0.25, f"classifier.{part}.bias": 1.0}
    weight = load_file(tmp_path / "out" / "model.safetensors")[f"classifier.{part}.weight"]
    assert float(weight.std()) == pytest.approx((1 / 32 / (4 if field == "init" else 1)) ** 0.5, rel=0.3)


def test_a_head_by_another_scheme_writes_no_learning_rates(sources, tmp_path):
    apply(sources["roberta"], tmp_path / "out", {**HEAD, "inner_init": "xavier_uniform"})
    assert not (tmp_path / "out" / "lr_multipliers.json").exists()
