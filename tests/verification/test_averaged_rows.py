"""Rows that average old ones, in what was written: those of another token, and those that are off by more than one rounding, are caught."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import ROOT
from support.recipes import recipe
from support.renamed import checkpoint
from support.tokenizer_sources import bpe, llama, unigram, wordpiece

import graftkit
from graftkit import engine
from graftkit.errors import VerificationFailed
from graftkit.operations.vocabulary.rows import RowMaker

KINDS = (bpe, wordpiece, unigram, llama)
DEMO = ROOT / "recipes/models/demo-lm"
INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
LEARN = {"op": "learn_tokens", "texts": str(ROOT / "recipes/examples/docstrings.jsonl"), "size": 12}
EXTEND = {"op": "extend_vocab", "tokens": ["unreadable", "hello world", "colourful"], "init": "subword_mean"}
MADE = {
    "learn_tokens": LEARN | {"output_init": "subword_mean"},
    "extend_vocab": EXTEND | {"output_init": "describe"},
    "reinit_rows": {"op": "reinit_rows", "tokens": ["<s>", "</s>"], "init": "subword_mean", "output_init": "subword_mean"},
    "rename_tokens": {"op": "rename_tokens", "names": {"<s>": "<|function|>", "</s>": "<|result|>"}, "init": "describe",
                      "output_init": "describe"},
}  # fmt: skip


def check_of(planned):
    return next(check for check in planned.outcomes[0].checks if check.name == "averaged rows")


def found_in(planned, folder):
    return check_of(planned).run(engine.subject_of(planned, folder))


def changed(folder, target, name, change):
    """A copy of the folder with the tensor ``name`` changed."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    save_file({**tensors, name: change(tensors[name]).contiguous()}, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.fixture(scope="module", params=MADE)
def made(request, tmp_path_factory):
    """What an operation wrote from the demo model, its plan, and the ids whose rows are averages."""
    given = recipe(DEMO, tmp_path_factory.mktemp("out") / "out", MADE[request.param], verify={"outputs": False})
    report = graftkit.apply(given)
    (averages, *_) = check_of(report.plan).averages().values()
    return given["output"], report, [one.index for one in averages]


def test_each_row_is_compared_and_the_report_shows_it(made):
    output, report, ids = made
    written = json.loads((ROOT / output / "graft_report.json").read_text())
    found = written["checks"]["averaged rows"]
    assert (found["tables"], found["averages"], found["failures"]) == (2, 2 * len(ids), [])
    assert len(ids) > 1
    (line,) = (row for row in written["checked"] if row["check"] == "averaged rows")
    assert line["result"] == "equal"


@pytest.mark.parametrize("table", [INPUT, OUTPUT])
def test_new_rows_one_place_further_on_are_caught(made, tmp_path, table):
    output, report, ids = made
    for name, change in {
        "new ones": lambda rows: rows.index_copy(0, torch.tensor(ids), rows[ids].roll(1, 0)),
        "all": lambda rows: rows.roll(1, 0),
    }.items():
        folder = changed(output, tmp_path / name, table, change)
        (failure,) = found_in(report.plan, folder).failures
        assert f"tensor '{table}': {len(ids)} rows are not the mean of the rows of the old tokens" in failure


def test_an_id_that_moved_in_the_tokenizer_alone_is_caught(tmp_path):
    report = graftkit.apply(recipe(DEMO, tmp_path / "out", LEARN, verify={"outputs": False}))
    file = tmp_path / "out/tokenizer.json"
    document = json.loads(file.read_text())
    vocabulary = document["model"]["vocab"]
    one, two = list(report.plan.new_tokens)[:2]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    file.write_text(json.dumps(document))
    (failure,) = found_in(report.plan, tmp_path / "out").failures
    assert "2 rows are not the mean" in failure


def test_a_value_that_is_two_roundings_away_is_caught(tmp_path):
    report = graftkit.apply(recipe(DEMO, tmp_path / "out", EXTEND, verify={"outputs": False}))
    index = report.plan.new_tokens["unreadable"]

    def nudged(rows):
        place = int(rows[index].abs().argmax())
        rows.view(torch.int16)[index, place] += 2
        return rows

    (failure,) = found_in(report.plan, changed(tmp_path / "out", tmp_path / "off", INPUT, nudged)).failures
    assert "1 row is not the mean" in failure
    assert "('unreadable')" in failure


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("operation", [EXTEND, LEARN], ids=lambda operation: operation["op"])
def test_an_operation_that_shifts_rows_commits_nothing_over_any_tokenizer(make, operation, tmp_path, monkeypatch):
    source, right = checkpoint(make, tmp_path / "base"), RowMaker._make
    monkeypatch.setattr(RowMaker, "_make", lambda maker, item: right(maker, item).roll(1, 0))
    with pytest.raises(
        VerificationFailed, match=r"averaged rows: tensor .* not the mean of the rows of the old tokens"
    ):
        graftkit.apply(recipe(source, tmp_path / "out", operation, verify={"outputs": False}))
    assert not (tmp_path / "out").exists()


def test_it_is_left_out_where_a_later_operation_moves_the_ids(tmp_path):
    trim = {"op": "trim_vocab", "keep": {"tokens": ["Ġthe", "unreadable"]}}
    given = recipe(DEMO, tmp_path / "out", EXTEND, trim, verify={"outputs": False})
    report = graftkit.apply(given)
    assert "averaged rows" not in {check.name for check in report.checks}
