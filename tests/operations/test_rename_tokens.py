"""rename_tokens: the same model under other names, over each kind of tokenizer; rows made anew where that is asked."""

import json

import pytest
import torch
from support.command import ROOT, here
from support.families import TOKENS
from support.recipes import applied, apply_by_command, load, recipe
from support.renamed import NAMES, checkpoint

import graftkit
from graftkit.errors import RecipeError

LIVE = "<unk>"


def rename(names, **fields):
    return {"op": "rename_tokens", "names": names, **fields}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {make: checkpoint(make, tmp_path_factory.mktemp(make.__name__) / "base") for make in NAMES}


@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_every_weight_id_and_output_stays_over_each_kind_of_tokenizer(make, bases, tmp_path):
    source, names = bases[make], NAMES[make]
    output, report = applied(source, tmp_path, rename(names))
    assert report["promise"]["strength"] == report["promise"]["measured"] == "bitwise"
    assert report["renamed_tokens"] == {old: {"content": new, "special": True} for old, new in names.items()}
    assert report["new_tokens"] == {}
    assert report["changes"]["tensors"] == []
    assert (output / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((output / name).read_text()) == json.loads((source / name).read_text())
    card = (output / "README.md").read_text()
    assert all(new.replace("|", "\\|") in card for new in names.values())


def test_the_command_shows_it_and_verify_accepts_it(tmp_path):
    done = here("apply", "recipes/rename_tokens.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "renamed tokens" in done.stdout
    assert "1   </s>    <|im_end|>" in done.stdout
    found = graftkit.verify(str(ROOT / "recipes/models/demo-lm"), str(tmp_path / "out"))
    assert found.failures == ()
    assert "1 renamed token" in found.tokenization.figure()


def test_without_the_report_a_renamed_token_is_no_silent_change(sources, tmp_path):
    output, _ = applied(sources("llama"), tmp_path, rename({"<unk>": "<|tool|>"}))
    (output / "graft_report.json").unlink()
    found = graftkit.verify(str(sources("llama")), str(output), outputs=False)
    assert any("id 3 was '<unk>'" in failure for failure in found.failures)


def test_a_source_that_has_the_new_names_already_is_held_to_them(sources, tmp_path):
    """The report says how the old names went, which are those of another source."""
    output, _ = applied(sources("llama"), tmp_path, rename({"<unk>": "<|tool|>"}))
    assert graftkit.verify(str(output), str(output), outputs=False).failures == ()


@pytest.mark.parametrize("family", ["llama", "llama_tied", "bert"])
def test_rows_are_made_anew_where_that_is_asked(family, sources, tmp_path):
    source = sources(family)
    names = {"<unk>": {"content": "<|tool_call|>", "init": "describe"}, "<s>": "<|begin|>"}
    output, report = applied(source, tmp_path, rename(names))
    (old, _), (new, _) = load(source), load(output)
    before, after = (model.get_input_embeddings().weight for model in (old, new))
    others = [index for index in range(len(before)) if index != 3]
    assert torch.equal(before[others], after[others])
    from transformers import AutoTokenizer

    pieces = AutoTokenizer.from_pretrained(source)("tool call", add_special_tokens=False)["input_ids"]
    assert torch.allclose(after[3], before[pieces].mean(0), atol=1e-6)
    table, made = (model.get_output_embeddings().weight for model in (old, new))
    assert torch.equal(table[others], made[others])
    assert not torch.equal(table[3], made[3])
    assert "without the id whose row is new" in report["promise"]["domain"]
    assert report["promise"]["kl"] is not None


def test_mean_rows_keep_the_bound_on_the_kl(sources, tmp_path):
    report = graftkit.apply(recipe(sources("llama"), tmp_path / "out", rename({"<unk>": "<|tool|>"}, init="mean")))
    bound = report.outputs.distribution
    assert bound.bound_kind == "log(1 + k/m)"
    assert bound.kl_max <= bound.bound == pytest.approx(1 / (TOKENS - 1), rel=0.01)
    assert report.outputs.ids == TOKENS - 1


def test_renamed_tokens_are_trained_by_an_adapter_that_comes_behind(sources, tmp_path):
    plan = graftkit.plan(
        recipe(sources("llama"), tmp_path / "out", rename({"<unk>": "<|tool|>"}),
               {"op": "add_lora", "r": 2, "train_new_tokens": True})
    )  # fmt: skip
    assert plan.adapter.config["trainable_token_indices"] == {"model.embed_tokens": [3], "lm_head": [3]}


def test_it_composes_with_what_adds_tokens_on_both_sides(sources, tmp_path):
    add = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
    again = [rename({"<|a|>": "<|b|>", "<unk>": "<|x|>"}), {"op": "extend_vocab", "special_tokens": ["<|a|>"]}]
    report = graftkit.apply(recipe(sources("llama"), tmp_path / "out", add, *again, rename({"<|x|>": "<|y|>"})))
    assert report.plan.new_tokens == {"<|b|>": TOKENS, "<|a|>": TOKENS + 1}
    assert report.plan.renamed_tokens == {"<unk>": "<|y|>"}
    assert report.outputs.distribution.bound is not None
    found = graftkit.verify(str(sources("llama")), str(tmp_path / "out"))
    assert found.failures == ()


REFUSED = {
    "a name that is taken": ({"<unk>": "</s>"}, r"operations\.0\.names\.<unk>: the tokenizer has a token '</s>' already, with id 2"),
    "output rows of a tied model": (
        {"<unk>": {"content": "<x>", "init": "mean", "output_init": "zeros"}}, r"operations\.0\.output_init: has no meaning",
    ),
    "a name without a word": ({"<unk>": {"content": "<|>", "init": "describe"}}, "holds no word; give text"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_with_its_place(case, sources, tmp_path):
    names, message = REFUSED[case]
    with pytest.raises(RecipeError, match=message):
        graftkit.plan(recipe(sources("llama_tied"), tmp_path / "out", rename(names)))


def test_a_fault_on_the_way_writes_nothing(sources, tmp_path, monkeypatch):
    """One file is forgotten, as a fault of the operation itself would leave it."""
    from graftkit.checkpoint.tokenizer import renaming

    monkeypatch.setattr(renaming, "named_values", lambda document, names: document)
    done, output = apply_by_command(sources("llama"), tmp_path, rename({"<unk>": "<|tool|>"}))
    assert done.returncode == 4
    assert "unk" in done.stderr
    assert not output.exists()
