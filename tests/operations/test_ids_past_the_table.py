"""A tokenizer with ids past the table's rows: every operation says so by name, and extend_vocab makes the rows."""

import json

import pytest
import torch
import transformers
from support.adapters import make_adapter
from support.command import here
from support.families import ROWS, build
from support.recipes import applied, load, recipe

import graftkit
from graftkit.compare import verify
from graftkit.errors import RecipeError

LATE = [f"<late{i}>" for i in range(4)]
SAID = f"the tokenizer's ids {ROWS} to {ROWS + 3} ('<late0>', '<late1>', '<late2>', '<late3>') lie past the table's {ROWS} rows"


def write(directory, family="llama"):
    """A base whose tokenizer somebody has added four tokens to, and saved, without resizing the table."""
    build(family, directory, tokens=ROWS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(LATE)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write(tmp_path_factory.mktemp("late") / "base")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("late"), "LlamaForCausalLM", base=base, target_modules=["q_proj"])[1]


def test_inspect_names_them(base):
    done = here("inspect", base)
    assert f"finding: {SAID}" in done.stdout


@pytest.mark.parametrize("op", ["add_lora", "add_adapter", "merge_adapter", "resize_adapter", "reinit"])
def test_what_does_not_grow_the_table_says_so(base, adapter, op, tmp_path):
    fields = {
        "add_lora": {"r": 2}, "add_adapter": {"peft_type": "IA3"}, "merge_adapter": {"adapter": str(adapter)},
        "resize_adapter": {"adapter": str(adapter), "r": 2}, "reinit": {"layers": "last 1"},
    }[op]  # fmt: skip
    plan = graftkit.plan(recipe(base, tmp_path / "out", {"op": op, **fields}))
    assert [note for note in plan.notes if SAID in note]


def test_the_report_and_the_terminal_say_it_too(base, tmp_path):
    _, report = applied(base, tmp_path, {"op": "add_lora", "r": 2})
    assert [note for note in report["notes"] if SAID in note]
    done = here("plan", tmp_path / "recipe.yaml", "--output", tmp_path / "other")
    assert f"note: {SAID}" in done.stdout


def test_a_base_with_a_row_for_each_id_says_nothing(sources, tmp_path):
    plan = graftkit.plan(recipe(sources("llama", tokens=ROWS), tmp_path / "out", {"op": "add_lora", "r": 2}))
    assert not any("past the table" in note for note in plan.notes)


GROWN = {
    "a new token": ({"special_tokens": ["<|a|>"]}, ROWS + 5),
    "a multiple alone": ({"pad_to_multiple_of": 64}, 384),
    "a role alone": ({"roles": {"pad_token": "<s>"}}, ROWS + 4),
    "pieces": ({"tokens": ["zqx"], "init": "subword_mean"}, ROWS + 5),
    "a text with a token that has no row": ({"tokens": ["zqx"], "init": {"scheme": "describe", "text": "a <late1>"}}, ROWS + 5),
}  # fmt: skip


@pytest.mark.parametrize("fields", GROWN)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_extend_vocab_makes_the_rows(base, family, fields, tmp_path):
    base = base if family == "llama" else write(tmp_path / "base", family)
    given, rows = GROWN[fields]
    output, report = applied(base, tmp_path, {"op": "extend_vocab", **given})
    assert (
        f"4 tokens that the tokenizer had past the table's {ROWS} rows get their rows: '<late0>' ({ROWS}),"
        in "".join(report["notes"])
    )
    assert not any("lie past" in note for note in report["notes"])
    (old, _), (new, info) = load(base), load(output)
    assert not info["missing_keys"]
    before, table = old.get_input_embeddings().weight, new.get_input_embeddings().weight
    assert table.shape[0] == rows == new.config.vocab_size
    assert table[:ROWS].equal(before)
    assert table.isfinite().all()
    if "init" not in given:
        mean = before.double().mean(0)
        assert all(torch.allclose(row.double(), mean, rtol=0, atol=1e-7) for row in table[ROWS:])
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    assert tokenizer.convert_tokens_to_ids(LATE) == list(range(ROWS, ROWS + 4))
    if family == "llama":
        assert new(torch.tensor([[5, ROWS, ROWS + 3, 6]])).logits.isfinite().all()
    assert "finding: the tokenizer's ids" not in here("inspect", output).stdout


def test_late_rows_are_made_of_the_pieces_that_the_table_has(base, tmp_path):
    """The token itself is a piece of its own, and has no row to average."""
    output, _ = applied(base, tmp_path, {"op": "extend_vocab", "tokens": ["zqx"], "init": "subword_mean"})
    pieces = transformers.AutoTokenizer.from_pretrained(build("llama", tmp_path / "plain", tokens=ROWS)).encode(LATE[0])
    table = load(output)[0].get_input_embeddings().weight.double()
    assert len(pieces) > 1
    assert torch.allclose(table[ROWS], table[pieces].mean(0), rtol=0, atol=1e-7)


def test_a_row_that_is_not_there_cannot_be_copied(base, tmp_path):
    copy = {"scheme": "copy", "token": LATE[0]}
    with pytest.raises(RecipeError, match="no token '<late0>' with a row"):
        graftkit.plan(recipe(base, tmp_path / "out", {"op": "extend_vocab", "tokens": ["zqx"], "init": copy}))


def test_an_adapter_behind_it_trains_the_rows_that_were_made(base, tmp_path):
    grown = {"op": "extend_vocab", "tokens": ["zqx"]}
    output, report = applied(
        base, tmp_path, grown, {"op": "extend_vocab", "tokens": ["zqy"]}, {"op": "add_lora", "r": 2}
    )
    trained = json.loads((output / "adapter/adapter_config.json").read_text())["trainable_token_indices"]
    assert set(map(tuple, trained.values())) == {tuple(range(ROWS, ROWS + 6))}
    assert report["new_tokens"] == {"zqx": ROWS + 4, "zqy": ROWS + 5}


@pytest.mark.parametrize("with_report", [True, False])
def test_verify_runs_the_ids_that_had_a_row(base, tmp_path, with_report):
    output, _ = applied(base, tmp_path, {"op": "extend_vocab", "tokens": ["zqx"]})
    if not with_report:
        (output / "graft_report.json").unlink()
    assert not verify(str(base), str(output)).failures
    assert not verify(str(base), str(base)).failures
