"""reinit_rows: the chosen rows alone are new, in every table; everything of the other ids stays to the last bit."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import ROOT, here
from support.families import FAMILIES, ROWS, TOKENS
from support.recipes import applied, load, recipe
from support.renamed import NAMES, checkpoint

import graftkit
from graftkit import engine
from graftkit.architecture.correspondence import Correspondence
from graftkit.errors import RecipeError, VerificationFailed
from graftkit.operations.vocabulary.rows import RowMaker

CHOSEN = (3, 40, 41, 42)
TOKENS_OF_IT = ["<unk>", {"first": 40, "last": 42}]


def reinit(tokens, **fields):
    return {"op": "reinit_rows", "tokens": tokens, **fields}


#: Untied, tied, with an output bias, with tables of a sibling, an encoder-decoder; the others run behind the marker.
QUICK = ("llama", "llama_tied", "bert", "bert_base_with_head", "t5")


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_the_chosen_rows_are_the_mean_of_the_others_and_all_else_stays(family, sources, tmp_path):
    source = sources(family)
    report = graftkit.apply(recipe(source, tmp_path / "out", reinit(TOKENS_OF_IT)))
    assert report.outputs.passed
    assert all(item.bitwise for item in report.outputs.comparisons)
    assert report.outputs.ids == report.outputs.ids_covered == TOKENS - len(CHOSEN)
    (old, _), (new, _) = load(source), load(tmp_path / "out")
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(model, getter)() for model in (old, new))
        if before is None:
            continue
        kept = [index for index in range(ROWS) if index not in CHOSEN]
        assert torch.equal(before.weight[kept], after.weight[kept])
        mean = before.weight[[index for index in kept if index < TOKENS]].double().mean(0)
        for index in CHOSEN:
            assert torch.allclose(after.weight[index].double(), mean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_it_works_over_each_kind_of_tokenizer(make, tmp_path):
    """By a name, with the words of that name, from the command line; the tokenizer's files stay byte for byte."""
    source = checkpoint(make, tmp_path / "base")
    token = next(iter(NAMES[make]))
    output, report = applied(source, tmp_path, reinit([token], init="describe"))
    assert report["promise"]["measured"] == "bitwise"
    assert report["changes"]["values"] == []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((output / name).read_text()) == json.loads((source / name).read_text())


def test_the_recipe_of_the_project_runs_and_verify_accepts_it(tmp_path):
    done = here("apply", "recipes/reinit_rows.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "5 rows of each table made anew, of the ids 0, 2 to 5" in done.stdout.replace("\n", " ")
    found = graftkit.verify(str(ROOT / "recipes/models/demo-lm"), str(tmp_path / "out"))
    assert found.failures == ()
    assert all(item.bitwise for item in found.outputs.comparisons)


@pytest.fixture
def neglected(sources, tmp_path):
    """A Llama with rows that were never trained: two zero, one next to zero, two equal to an earlier one; one output row besides."""
    source = tmp_path / "neglected"
    shutil.copytree(sources("llama"), source)
    tensors = load_file(source / "model.safetensors")
    table, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    table[[5, 6]] = 0
    table[7] *= 1e-5
    table[[9, 10]] = table[8].clone()
    head[200] = 0
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    return source


def test_rows_that_were_never_trained_are_found_by_norm_and_as_duplicates(neglected, tmp_path):
    report = graftkit.apply(recipe(neglected, tmp_path / "out", reinit("never_trained")))
    assert report.plan.outcomes[0].correspondence.fresh_ids == (5, 6, 7, 9, 10)
    assert report.outputs.distribution.kl_max <= report.outputs.distribution.bound
    notes = " ".join(report.plan.notes)
    assert "never trained, by their input rows: 2 zero, 1 near zero, 2 duplicate" in notes
    assert "the output rows of 1 other token were never trained: 200" in notes


def test_where_every_row_was_trained_there_is_nothing_to_choose(sources, tmp_path):
    with pytest.raises(RecipeError, match=r"operations\.0\.tokens: no input row was never trained"):
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", reinit("never_trained")))


def test_rows_made_anew_are_those_of_other_schemes_and_not_of_what_stood_there(neglected, tmp_path):
    """NaN too is no part of a mean that leaves it out."""
    tensors = load_file(neglected / "model.safetensors")
    tensors["model.embed_tokens.weight"][5] = float("nan")
    save_file(tensors, neglected / "model.safetensors", {"format": "pt"})
    fields = {"init": {"scheme": "copy", "token": "<s>"}, "output_init": "zeros"}
    graftkit.apply(recipe(neglected, tmp_path / "out", reinit([5, 6], **fields), reinit([7])))
    made = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(made["model.embed_tokens.weight"][[5, 6]], tensors["model.embed_tokens.weight"][[1, 1]])
    assert not made["lm_head.weight"][[5, 6]].any()
    assert made["model.embed_tokens.weight"].isfinite().all()


def test_what_looks_at_the_result_leaves_its_new_rows_out(sources, tmp_path):
    wanted = {"lens": True, "signal": True, "first_step": True}
    report = graftkit.apply(recipe(sources("llama"), tmp_path / "out", reinit(TOKENS_OF_IT), verify=wanted))
    assert not any(finding.failures for finding in report.findings)


REFUSED = {
    "a token that is not there": (["<unkk>"], r"tokens\.0: the tokenizer has no token '<unkk>'; did you mean '<unk>'"),
    "an id without a row": ([5, ROWS], rf"tokens\.1: id {ROWS} has no row: the table has {ROWS}"),
    "a range without rows": ([{"first": 5, "last": ROWS}], rf"tokens\.0: id {ROWS} has no row"),
    "an id twice": ([3, {"first": 1, "last": 5}, "<unk>"], r"tokens\.1: id 3 is chosen a second time, after tokens\.0"),
    "every id": ([{"first": 0, "last": ROWS - 1}], r"tokens: leaves no row of another token to start from"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_chosen_is_refused_with_its_place(case, sources, tmp_path):
    tokens, message = REFUSED[case]
    with pytest.raises(RecipeError, match=rf"operations\.0\.{message}"):
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", reinit(tokens)))


def test_output_rows_of_a_tied_model_are_refused(sources, tmp_path):
    with pytest.raises(RecipeError, match="output_init: has no meaning.*tied"):
        graftkit.plan(recipe(sources("llama_tied"), tmp_path / "out", reinit([3], output_init="zeros")))


def test_a_row_that_should_have_stayed_is_caught(sources, tmp_path):
    """The operation makes the rows of four ids, and says of three that they are new: the fourth differs, and nothing is written."""
    plan = graftkit.plan(recipe(sources("llama"), tmp_path / "out", reinit(TOKENS_OF_IT)))
    fewer = Correspondence.of_ids(ROWS, ROWS, TOKENS, CHOSEN[:-1])
    wrong = dataclasses.replace(plan, outcomes=(dataclasses.replace(plan.outcomes[0], correspondence=fewer),))
    with pytest.raises(VerificationFailed, match="hidden_states"):
        engine.execute(wrong)
    assert not (tmp_path / "out").exists()


def test_a_row_that_takes_more_than_promised_is_caught(sources, tmp_path, monkeypatch):
    make = RowMaker._make
    monkeypatch.setattr(RowMaker, "_make", lambda self, item: make(self, item) + (50 if item.role == "output" else 0))
    with pytest.raises(VerificationFailed, match="above the promised bound"):
        graftkit.apply(recipe(sources("llama"), tmp_path / "out", reinit(TOKENS_OF_IT)))


def test_verify_names_a_row_that_somebody_changed_afterwards(sources, tmp_path):
    """With the report the digest tells, without it the old row."""
    output, _ = applied(sources("llama"), tmp_path, reinit(TOKENS_OF_IT))
    tensors = load_file(output / "model.safetensors")
    tensors["model.embed_tokens.weight"][50] += 1
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    found = graftkit.verify(str(sources("llama")), str(output), outputs=False)
    assert any("embed_tokens" in failure for failure in found.failures)


def test_a_report_excuses_no_row_of_a_source_that_it_is_not_about(sources, tmp_path):
    """Two graftings of one base take the same padding rows, and each report calls them new: beside each other they are two."""
    outputs = []
    for place, init in (("one", "mean"), ("other", "normal")):
        fields = {"special_tokens": ["<|x|>"], "init": init}
        outputs.append(applied(sources("llama"), tmp_path / place, {"op": "extend_vocab", **fields})[0])
    found = graftkit.verify(*map(str, outputs), outputs=False)
    assert any("embed_tokens.weight': 1 rows of old ids changed" in failure for failure in found.failures)
