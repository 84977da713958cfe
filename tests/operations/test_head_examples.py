"""Heads fitted to examples and to the size of features, on small models, from the recipe to the reloaded checkpoint."""

import json

import pytest
import torch
import transformers
from support.families import build

import graftkit
from graftkit.verification.heads.held_out import HeldOutReport, check_held_out
from graftkit.verification.heads.measures import OneLabel, Scores

pytestmark = pytest.mark.cross_section

WORDS = {"heat": "the sun is hot and the fire burns", "rest": "she sleeps in a quiet house at night"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("examples")
    build("bert", place / "bert")
    build("llama", place / "llama")
    rows = [
        {"text": " ".join(words.split()[(i + j) % 8 : (i + j) % 8 + 5]) + f" {i}", "label": label}
        for i in range(20)
        for j, (label, words) in enumerate(WORDS.items())
    ]
    (place / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def recipe(place, family, output, scheme, **fields):
    init = {"scheme": scheme, **({"examples": str(place / "a.jsonl")} if scheme != "normal" else {}), **fields}
    operation = {"op": "replace_head", "task": "sequence_classification", "labels": list(WORDS), "init": init}
    return {"version": 1, "base_model": str(place / family), "operations": [operation], "output": str(output)}


@pytest.mark.parametrize(
    ("family", "scheme"), [("bert", "ridge"), ("bert", "lda"), ("bert", "prototype"), ("llama", "ridge")]
)
def test_the_reloaded_head_has_the_reported_held_out_loss(family, scheme, place, tmp_path):
    steps = []
    report = graftkit.apply(
        recipe(place, family, tmp_path / "out", scheme),
        progress=lambda what, done, total: steps.append((what, done / total)),
    )
    figures = report.figures["operations.0.replace_head"]
    assert figures["held_out"]["examples"] == len(figures["held_out_rows"]) == 8
    assert ("prepare replace_head", 1.0) in steps
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]
    losses, (check,) = [], [check for check in report.checks if check.name == "held_out_examples"]
    for index in figures["held_out_rows"]:
        inputs = tokenizer(rows[index]["text"], return_tensors="pt", truncation=True, max_length=figures["max_length"])
        label = torch.tensor([model.config.label2id[rows[index]["label"]]])
        inputs.pop("token_type_ids", None)
        losses.append(model(**inputs, labels=label).loss.item())
    slack = check.noise + 2 * figures["loss_rounding"]  # here the loss itself is in float32 as well
    assert sum(losses) / len(losses) == pytest.approx(figures["held_out"]["loss"], abs=slack)
    assert figures["held_out"]["balanced_accuracy"] >= 0.5
    assert check.failures == ()
    assert (
        0 < check.rounding < (1e-2 if scheme != "lda" else 1)
    )  # logits of lda are differences of numbers 10,000 times as large


def test_labels_that_changed_places_are_caught(place, tmp_path):
    from safetensors.torch import load_file, save_file

    report = graftkit.apply(recipe(place, "bert", tmp_path / "out", "ridge"))
    figures = report.figures["operations.0.replace_head"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    rows = [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]
    pairs = [(list(WORDS).index(rows[i]["label"]), rows[i]["text"]) for i in figures["held_out_rows"]]
    found = check_held_out(
        tmp_path / "out", lambda: pairs, lambda: (Scores(**figures["held_out"]), figures), OneLabel(2)
    )
    assert any("the written checkpoint has a loss of" in failure for failure in found.failures)
    assert isinstance(found, HeldOutReport)


def test_scores_count_each_label_alike_when_balanced():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    found = OneLabel(2).score(zip([0, 0, 0, 1], logits, strict=True))
    assert (found.accuracy, found.balanced_accuracy) == (0.75, 0.5)


def test_a_scheme_that_needs_a_bias_is_refused_without_one(place, tmp_path):
    for scheme in ("lda", "prototype"):
        with pytest.raises(
            graftkit.GraftkitError,
            match=f"{scheme} needs a bias.*'score' of LlamaForSequenceClassification has none; ridge",
        ):
            graftkit.plan(recipe(place, "llama", tmp_path / "out", scheme))


def test_a_wrong_example_is_found_when_planning(place, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": "cold"}\n')
    with pytest.raises(graftkit.GraftkitError, match=r"b.jsonl:1: the label 'cold' is none of the recipe's"):
        graftkit.plan(recipe(place, "bert", tmp_path / "out", "ridge", examples=str(tmp_path / "b.jsonl")))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_logits_get_the_standard_deviation_that_was_asked_for(family, place, tmp_path):
    from graftkit.running.probe_texts import PROBE_TEXTS

    wanted = 0.5
    many = {**recipe(place, family, tmp_path / "out", "normal", target_logit_std=wanted)}
    del many["operations"][0]["labels"]
    many["operations"][0]["num_labels"] = 2000
    report = graftkit.apply(many)
    assert report.figures["operations.0.replace_head"]["feature_norm"] > 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    squares = []
    for text in PROBE_TEXTS:
        ids = tokenizer(text, truncation=True, max_length=60, return_tensors="pt")["input_ids"]
        squares.append(model(input_ids=ids).logits.double().square().mean().item())
    assert (sum(squares) / len(squares)) ** 0.5 == pytest.approx(wanted, rel=0.06)
