"""replace_head with task value_head: a file that trainers read beside a model whose every byte stays as it is."""

import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import here
from support.recipes import load, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

import graftkit
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.value_head import BIAS, FILE, WEIGHT
from graftkit.errors import InputRejected
from graftkit.selftest.copies import edit_stored
from graftkit.verification.heads.value_head import check_value_head

HEAD = {"op": "replace_head", "task": "value_head"}
NORMAL = {**HEAD, "init": {"scheme": "normal", "std": 0.5}}


@pytest.fixture(scope="module")
def grafted(demo, tmp_path_factory):
    """The demo model with a value head of zeros, by the recipe for it: read it, do not change it."""
    output = tmp_path_factory.mktemp("value") / "out"
    done = here("apply", "recipes/value_head.yaml", f"base_model={demo}", "--output", output)
    assert done.returncode == 0, done.stderr
    assert "stage: rm" in done.stdout
    return output


@pytest.fixture
def copy(grafted, tmp_path):
    shutil.copytree(grafted, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_base_is_not_touched_and_the_file_is_the_one_that_trainers_read(grafted, demo):
    assert (grafted / "model.safetensors").read_bytes() == (demo / "model.safetensors").read_bytes()
    assert json.loads((grafted / "config.json").read_text()) == json.loads((demo / "config.json").read_text())
    head = load_file(grafted / FILE)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in head.items()} == {
        WEIGHT: (torch.float32, (1, 160)), BIAS: (torch.float32, (1,)),
    }  # fmt: skip
    assert not any(value.any() for value in head.values())
    report = json.loads((grafted / "graft_report.json").read_text())
    assert {e["shard"] for e in report["ledger"] if e["name"].startswith("v_head")} == {FILE}
    assert report["promise"]["measured"] == "bitwise"
    assert report["checks"]["value_head"]["tokens"] > 0


def test_a_loss_on_pairs_begins_at_ln_2_and_the_head_learns_at_once(grafted):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(grafted).float(), AutoTokenizer.from_pretrained(grafted)
    head = torch.nn.Linear(160, 1)
    head.load_state_dict(
        {name.removeprefix("v_head.summary."): value for name, value in load_file(grafted / FILE).items()}
    )
    values = [
        head(model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1])[0, -1, 0]
        for text in ("a list of names", "the")
    ]
    loss = -torch.nn.functional.logsigmoid(values[0] - values[1])
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert head.weight.grad.any()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "mixtral", "cohere"])
def test_a_normal_head_on_other_families(family, sources, tmp_path):
    report = graftkit.apply(recipe(sources(family), tmp_path / "out", NORMAL))
    weight = load_file(tmp_path / "out" / FILE)[WEIGHT]
    assert weight.shape == (1, 32)
    assert 0.25 < weight.std() < 0.75
    (check,) = (check for check in report.checks if check.name == "value_head")
    assert check.largest > 0


def test_the_seed_decides_a_normal_head_and_shards_are_taken_over_whole(sources, tmp_path):
    source = sources("llama", shard_size="40KB")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        graftkit.apply({**recipe(source, tmp_path / name, NORMAL, verify={"outputs": False}), "seed": seed})
    a, b, c = ((tmp_path / name / FILE).read_bytes() for name in "abc")
    assert a == b != c
    for path in source.glob("*.safetensors"):
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()


def test_opened_as_a_base_it_is_known_and_comes_along(grafted, tmp_path):
    opened = Checkpoint.open(str(grafted))
    assert opened.value_head.keys() == {WEIGHT, BIAS}
    assert FILE not in opened.left_behind
    assert FILE not in opened.carried
    grown = recipe(grafted, tmp_path / "grown", {"op": "extend_vocab", "tokens": ["zqx"]}, verify={"outputs": False})
    graftkit.apply(grown)
    assert (tmp_path / "grown" / FILE).read_bytes() == (grafted / FILE).read_bytes()
    assert graftkit.verify(str(grafted), str(tmp_path / "grown")).failures == ()
    again = graftkit.plan(recipe(grafted, tmp_path / "again", NORMAL))
    assert any("the old value head is replaced" in note for note in again.notes)
    assert [(change.name, change.kind) for change in again.tensors] == [(WEIGHT, "computed"), (BIAS, "computed")]
    shuffled = graftkit.plan(recipe(grafted, tmp_path / "x", {"op": "drop_blocks", "blocks": [1]}))
    assert any(f"{FILE}: was fitted to the source's outputs, which change here" in note for note in shuffled.notes)


def test_a_head_of_another_task_takes_it_away_by_name(grafted, tmp_path):
    classifier = {"op": "replace_head", "task": "sequence_classification", "num_labels": 2, "pad_token": "</s>"}
    report = graftkit.apply(recipe(grafted, tmp_path / "out", classifier))
    assert {change.name for change in report.plan.tensors if change.kind == "dropped"} >= {WEIGHT, BIAS}
    assert any("is dropped" in note and WEIGHT in note for note in report.plan.notes)
    assert not (tmp_path / "out" / FILE).exists()
    assert load(tmp_path / "out")[1]["missing_keys"] == set()
    assert graftkit.verify(str(grafted), str(tmp_path / "out"), outputs=False).failures == ()


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            "bert",
            "stands on what AutoModelForCausalLM loads, which gives BertLMHeadModel here; this is BertForMaskedLM",
        ),
        ("t5", "stands on what AutoModelForCausalLM loads; this is T5ForConditionalGeneration"),
        ("bert_base", "stands on what AutoModelForCausalLM loads, which gives BertLMHeadModel here; this is BertModel"),
    ],
)
def test_what_trainers_would_not_load_is_refused(family, message, sources, tmp_path):
    with pytest.raises(InputRejected, match=message):
        graftkit.plan(recipe(sources(family), tmp_path / "out", HEAD))


def test_a_width_that_trl_would_not_take_is_refused(sources, tmp_path, monkeypatch):
    from graftkit.operations.heads import value_head

    for measured, why in (
        (16, "hidden states that are 16 wide, and TRL makes a value head for 32"),
        (None, "no hidden states"),
    ):
        monkeypatch.setattr(value_head, "last_hidden_width", lambda _, measured=measured: measured)
        with pytest.raises(InputRejected, match=why):
            graftkit.plan(recipe(sources("llama"), tmp_path / "out", HEAD))


def test_a_model_in_memory_has_no_files_beside_it(sources):
    model, tokenizer = (kind.from_pretrained(sources("llama")) for kind in (AutoModelForCausalLM, AutoTokenizer))
    with pytest.raises(
        graftkit.GraftkitError, match=r"operations.0.task: a value head is the file value_head.safetensors"
    ):
        graftkit.graft(model, tokenizer, {"version": 1, "operations": [HEAD]})


def change_head(directory, change):
    tensors = load_file(directory / FILE)
    change(tensors)
    save_file(tensors, directory / FILE, {"format": "pt"})


FAULTS = {
    "NaN": (lambda t: t[WEIGHT].view(-1)[3].fill_(math.nan), "'v_head.summary.weight' holds NaN or infinity"),
    "wide": (lambda t: t.update({WEIGHT: torch.zeros(1, 64)}), r"has shape \[1, 64\], and \[1, 160\] is wanted"),
    "turned": (lambda t: t.update({WEIGHT: torch.zeros(160, 1)}), r"has shape \[160, 1\], and \[1, 160\] is wanted"),
    "lost": (lambda t: t.pop(BIAS), r"has no tensor v_head.summary.bias"),
    "named": (lambda t: t.update({"summary.weight": t.pop(WEIGHT)}), r"has no tensor v_head.summary.weight"),
    "more": (lambda t: t.update({"v_head.other": torch.ones(2)}), r"has tensors that no value head has: v_head.other"),
    "whole": (
        lambda t: t.update({BIAS: torch.ones(1, dtype=torch.int64)}),
        r"has dtype I64, which no linear layer has",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_and_inspect_find_a_planted_fault_without_a_report(fault, copy, demo):
    plant, message = FAULTS[fault]
    change_head(copy, plant)
    (copy / "graft_report.json").unlink()
    found = graftkit.verify(str(demo), str(copy), outputs=False)
    assert any(re.search(message, line) for line in found.found["bytes"])
    assert any(re.search(message, line) for line in graftkit.inspect(str(copy)).findings)


def test_verify_finds_a_planted_fault_by_the_report(copy, demo):
    assert graftkit.verify(str(demo), str(copy), outputs=False).failures == ()
    edit_stored(Checkpoint.open(str(copy)).value_head[WEIGHT], lambda values: values.view(-1)[3].fill_(1e-30))
    (failure,) = graftkit.verify(str(demo), str(copy), outputs=False).found["report"]
    assert failure == f"report: {FILE}: tensors are not what was written: {WEIGHT}"
    (copy / FILE).unlink()
    (failure,) = graftkit.verify(str(demo), str(copy), outputs=False).found["report"]
    assert failure == f"report: {FILE} was written and is gone"


def test_a_file_that_the_report_does_not_know_or_that_is_broken_is_found(copy, demo, grafted, tmp_path):
    graftkit.apply(
        recipe(demo, tmp_path / "plain", {"op": "extend_vocab", "tokens": ["zqx"]}, verify={"outputs": False})
    )
    shutil.copy(grafted / FILE, tmp_path / "plain" / FILE)
    found = graftkit.verify(str(demo), str(tmp_path / "plain"), outputs=False)
    assert found.found["report"] == (f"report: {FILE} was not written by that run; remove it",)
    (copy / FILE).write_bytes((copy / FILE).read_bytes()[:-1])
    with pytest.raises(InputRejected, match=rf"{FILE}: "):
        graftkit.verify(str(demo), str(copy))


def test_a_head_that_was_lost_or_changed_on_the_way_is_found(grafted, copy, demo):
    (copy / "graft_report.json").unlink()
    change_head(copy, lambda tensors: tensors[WEIGHT].view(-1)[3].fill_(1.0))
    (failure,) = graftkit.verify(str(grafted), str(copy), outputs=False).found["bytes"]
    assert failure == f"structure: tensor '{WEIGHT}': 1 rows changed, max |Δ| 1"
    found = graftkit.verify(str(grafted), str(demo), outputs=False).found["bytes"]
    assert found == (f"structure: tensor '{WEIGHT}' is missing", f"structure: tensor '{BIAS}' is missing")


def test_the_own_check_finds_what_is_not_as_it_was_asked_for(copy):
    assert check_value_head(copy, 160, zero=True).failures == ()
    change_head(copy, lambda tensors: tensors[WEIGHT].fill_(0.5))
    assert check_value_head(copy, 160, zero=False).failures == ()
    (failure,) = check_value_head(copy, 160, zero=True).failures
    assert failure.startswith("value head: zeros were asked for, and a value is ")
    change_head(copy, lambda tensors: tensors[WEIGHT].view(-1)[0].fill_(math.inf))
    assert check_value_head(copy, 160, zero=False).failures == ("value head: a value is not finite",)
    change_head(copy, lambda tensors: tensors.pop(WEIGHT))
    (failure,) = check_value_head(copy, 160, zero=True).failures
    assert failure.startswith(f"value head: {FILE} has no tensor {WEIGHT}")
    (copy / FILE).unlink()
    assert check_value_head(copy, 160, zero=True).failures


def test_diff_and_inspect_show_it_by_the_command_line(grafted, demo):
    shown = here("diff", demo, grafted).stdout
    assert WEIGHT in shown
    assert "30 tensors equal, 2 not" in shown
    assert f"value head  {WEIGHT} F32 [1, 160], {BIAS} F32 [1]" in here("inspect", grafted).stdout.replace("\n", " ")
