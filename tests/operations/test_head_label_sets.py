"""Heads for several labels at a time, fitted to examples, from the recipe to the reloaded checkpoint."""

import json

import pytest
import torch
import transformers
from support.families import build

import graftkit
from graftkit.verification.heads.held_out import check_held_out
from graftkit.verification.heads.measures import LabelSet

pytestmark = pytest.mark.cross_section

WORDS = {"heat": "the sun is hot and the fire burns", "rest": "she sleeps in a quiet house at night", "sea": "waves"}
LABELS = list(WORDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Small models, and 60 texts of which each holds words of none, one or two of the labels."""
    place = tmp_path_factory.mktemp("sets")
    build("bert", place / "bert")
    build("llama", place / "llama")
    rows = []
    for i in range(60):
        names = [name for bit, name in enumerate(LABELS) if i % 7 in (bit, bit + 1, bit + 4)]
        words = [word for name in names for word in WORDS[name].split()[i % 3 :]]
        rows.append({"text": " ".join([*words, f"then {i}"]), "label": names})
    (place / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def recipe(place, family, output, scheme, **fields):
    operation = {
        "op": "replace_head", "task": "sequence_classification", "labels": LABELS,
        "problem_type": "multi_label_classification",
        "init": {"scheme": scheme, "examples": str(place / "a.jsonl"), **fields},
    }  # fmt: skip
    return {"version": 1, "base_model": str(place / family), "operations": [operation], "output": str(output)}


def rows_of(place):
    return [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("family", "scheme"), [("bert", "ridge"), ("bert", "lda"), ("llama", "ridge")])
def test_the_reloaded_head_has_the_reported_held_out_loss(family, scheme, place, tmp_path):
    report = graftkit.apply(recipe(place, family, tmp_path / "out", scheme))
    figures = report.figures["operations.0.replace_head"]
    assert len(figures["strength"]) == len(figures["temperature"]) == len(figures["cross_validation"]["losses"]) == 3
    assert figures["held_out"]["examples"] == len(figures["held_out_rows"]) >= 3
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.problem_type == "multi_label_classification"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    (check,) = [check for check in report.checks if check.name == "held_out_examples"]
    losses, hits, named, there = [], *torch.zeros(3, 3)
    for index in figures["held_out_rows"]:
        row = rows_of(place)[index]
        inputs = tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=figures["max_length"])
        inputs.pop("token_type_ids", None)
        target = torch.tensor([[float(name in row["label"]) for name in LABELS]])
        found = model(**inputs, labels=target)
        losses.append(found.loss.item())
        chosen = (found.logits[0] > 0).float()
        hits, named, there = hits + chosen * target[0], named + chosen, there + target[0]
    slack = check.noise + 2 * figures["loss_rounding"]  # here the loss itself is in float32 as well
    assert sum(losses) / len(losses) == pytest.approx(figures["held_out"]["loss"], abs=slack)
    assert figures["held_out"]["f1"] == pytest.approx((2 * hits / (named + there).clamp(min=1)).tolist())
    assert figures["held_out"]["macro_f1"] == pytest.approx(sum(figures["held_out"]["f1"]) / 3)
    assert figures["held_out"]["loss"] < 0.65
    assert check.failures == ()
    (row,) = [row for row in report.rows() if row.check == "held-out examples"]
    assert "macro F1" in row.figure
    assert "heat " in row.figure


def test_labels_that_changed_places_are_caught(place, tmp_path):
    from safetensors.torch import load_file, save_file

    report = graftkit.apply(recipe(place, "bert", tmp_path / "out", "ridge"))
    figures = report.figures["operations.0.replace_head"]
    (check,) = [check for check in report.checks if check.name == "held_out_examples"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name].roll(1, 0).contiguous()
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    rows = rows_of(place)
    pairs = [
        (tuple(LABELS.index(name) for name in rows[i]["label"]), rows[i]["text"]) for i in figures["held_out_rows"]
    ]
    arguments = (lambda: (check.fitted, figures), LabelSet(tuple(LABELS)))
    found = check_held_out(tmp_path / "out", lambda: pairs, *arguments)
    assert any("the written checkpoint has a loss of" in failure for failure in found.failures)
    fewer = check_held_out(tmp_path / "out", lambda: pairs[1:], *arguments)
    assert fewer.failures == (
        f"head: {len(pairs)} examples were held out, and the written checkpoint gives {len(pairs) - 1}",
    )


def test_a_wrong_example_is_found_when_planning(place, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "a", "label": ["cold"]}\n')
    with pytest.raises(graftkit.GraftkitError, match=r"b.jsonl:1: the label 'cold' is none of the recipe's"):
        graftkit.plan(recipe(place, "bert", tmp_path / "out", "ridge", examples=str(tmp_path / "b.jsonl")))
    with pytest.raises(
        graftkit.GraftkitError, match=r"lda needs a bias.*'score' of LlamaForSequenceClassification has none"
    ):
        graftkit.plan(recipe(place, "llama", tmp_path / "out", "lda"))


def test_labels_that_cannot_be_dealt_are_refused_by_name(place, tmp_path, monkeypatch):
    """Iterative stratification nearly always finds a way; where it does not, the fit would divide by nothing."""
    from graftkit.operations.heads import examples

    monkeypatch.setattr(examples, "deal_sets", lambda sets, *_: torch.zeros(len(sets), dtype=torch.int64))
    with pytest.raises(graftkit.GraftkitError, match=r"a.jsonl: the few examples of label 'heat' carry others as well"):
        graftkit.plan(recipe(place, "bert", tmp_path / "out", "ridge"))
