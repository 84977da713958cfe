"""`graftkit init`: each kind of recipe applies as it stands, and where a model cannot have it, one line says why."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from support.command import assert_one_line, here, real
from support.families import build

from graftkit.drafting.drafts import DRAFTS
from graftkit.drafting.kinds import KINDS, USUAL
from graftkit.drafting.output import free_output
from graftkit.errors import RecipeError
from graftkit.recipe import load_recipe, parse_recipe

#: Kinds that the model that ships with the project can have.
OF_DEMO = ("lora", "tools", "chat", "pad", "classifier", "reward", "reinit")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_special(source, *tokens):
    """Give padding rows behind the tokenizer's ids to special tokens."""
    document = json.loads((source / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] += [{"id": 320 + n, "content": token, **flags} for n, token in enumerate(tokens)]
    (source / "tokenizer.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def reserving(tmp_path_factory):
    """A model whose vocabulary holds tokens in reserve, and one for padding, which is not what it pads with."""
    source = build("llama", tmp_path_factory.mktemp("reserving") / "model")
    add_special(source, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    edit(source / "tokenizer_config.json", pad_token="</s>")
    return source


def applied(place, source, kind):
    """Draft a recipe, apply it as it stands, and return it with its text and the report."""
    done = here("init", source, "--for", kind, "-o", "recipe.yaml", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "written to recipe.yaml; next: graftkit plan recipe.yaml\n"
    text = (place / "recipe.yaml").read_text(encoding="utf-8")
    done = here("apply", "recipe.yaml", "--json", cwd=place)
    assert done.returncode == 0, (text, done.stderr)
    written = yaml.safe_load(text)
    report = json.loads((place / written["output"] / "graft_report.json").read_text())
    return written, text, report


def in_one_line(text):
    """The comments at the margin of a draft, however their lines were broken."""
    return " ".join(" ".join(line[1:] for line in text.splitlines() if line.startswith("#")).split())


@pytest.mark.numerical
@pytest.mark.parametrize("kind", OF_DEMO)
def test_each_kind_applies_to_the_demo_model_as_it_stands(demo, tmp_path, kind):
    recipe, text, report = applied(tmp_path, demo, kind)
    assert recipe["output"] == f"out/demo-lm-{kind}"
    words = in_one_line(text)
    assert all(f"{token} ({index})" in words for token, index in report["new_tokens"].items())
    assert ("<|pad|>" in report["new_tokens"]) == (kind in ("tools", "chat", "pad", "classifier", "reward"))


@pytest.mark.numerical
@pytest.mark.parametrize("kind", ["classifier", "ner"])
def test_a_classifier_on_an_encoder(sources, tmp_path, kind):
    recipe, text, report = applied(tmp_path, sources("bert_base"), kind)
    assert [operation["op"] for operation in recipe["operations"]] == ["replace_head"]
    assert "classifier is new" in text
    assert report["new_tokens"] == {}


@pytest.mark.numerical
@pytest.mark.parametrize("kind", ["reserved", "reward"])
def test_tokens_of_the_vocabulary_are_taken_before_new_ones(reserving, tmp_path, kind):
    recipe, _, report = applied(tmp_path, reserving, kind)
    first = recipe["operations"][0]
    assert report["new_tokens"] == {}
    if kind == "reserved":
        assert [*first["names"].values()] == ["<|tool_call|>", "<|tool_result|>"]
    else:
        assert first["roles"] == {"pad_token": "<pad>"}


def test_every_kind_is_drafted_and_applied_here():
    assert {*KINDS} == {*DRAFTS} == {*OF_DEMO, "ner", "reserved"}
    assert USUAL in KINDS


REFUSED = {
    ("bert", "tools"): "init --for tools: BertForMaskedLM writes no text, so it makes no tool calls",
    ("bert", "chat"): "init --for chat: BertForMaskedLM writes no text, so it holds no conversation",
    ("llama", "pad"): "init --for pad: no pad token is needed: tokenizer and config pad with '<pad>' (id 0)",
    ("llama", "reserved"): "init --for reserved: the tokenizer has no special tokens in reserve",
    (
        "llava",
        "classifier",
    ): "init --for classifier: config.json: transformers has no class for sequence_classification",
}


@pytest.mark.parametrize(("family", "kind"), REFUSED)
def test_what_a_model_cannot_have_is_refused_with_the_reason(sources, tmp_path, family, kind):
    done = here("init", sources(family), "--for", kind, "-o", "recipe.yaml", cwd=tmp_path)
    assert_one_line(done, 2, REFUSED[family, kind])
    assert not list(tmp_path.iterdir())


def test_what_a_checkpoint_has_already_is_not_drafted_again(tmp_path):
    source = build("llama", tmp_path / "model")
    add_special(source, "<tool_call>", "</tool_call>")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    assert_one_line(
        here("init", source, "--for", "tools"), 2, "has tokens for tools already: </tool_call>, <tool_call>"
    )
    assert_one_line(here("init", source, "--for", "chat"), 2, "has a chat template already")
    (source / "tokenizer.json").unlink()
    assert_one_line(here("init", source, "--for", "tools"), 2, "init --for tools: tokenizer.json: not found")


def test_what_an_operation_refuses_is_said_without_a_place_in_a_recipe_that_nobody_has(tmp_path):
    from support.tiny import build as tiny

    tiny("MambaForCausalLM", tmp_path / "model")
    done = here("init", tmp_path / "model", "--for", "lora")
    assert_one_line(done, 2, "graftkit: init --for lora: peft refuses: ")


def test_tensors_of_no_class_are_carried_and_named(tmp_path):
    from safetensors.torch import load_file, save_file

    source = build("llama", tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    save_file(
        {**tensors, "mtp.weight": tensors["model.norm.weight"].clone()}, source / "model.safetensors", {"format": "pt"}
    )
    _, text, report = applied(tmp_path, source, "tools")
    assert "# no class of this config knows mtp.weight" in text
    assert "mtp.weight" in {entry["name"] for entry in report["ledger"]}


@pytest.mark.parametrize("kind", OF_DEMO)
def test_no_weight_is_read_and_the_text_says_what_was_planned(demo, monkeypatch, kind):
    read, preadv = [], os.preadv

    def counted(*arguments):
        read.append(preadv(*arguments))
        return read[-1]

    monkeypatch.setattr(os, "preadv", counted)
    found = json.loads(here("init", demo, "--for", kind, "--json").stdout)
    assert sum(read) == 0
    assert (found["kind"], found["written"]) == (kind, None)
    assert parse_recipe(yaml.safe_load(found["text"])) == parse_recipe(found["recipe"])
    assert max(map(len, found["text"].splitlines())) <= 110


def test_a_draft_names_what_an_adapter_trains_and_what_not(demo):
    text = here("init", demo).stdout
    assert "#   down_proj (3 layers)  448 -> 160\n" in text
    never = "Never trained: embed_tokens, input_layernorm, post_attention_layernorm, norm, lm_head."
    assert never in in_one_line(text)


def test_a_file_that_exists_is_left_alone(tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    done = here("init", "/no/such/model", "-o", "recipe.yaml", cwd=tmp_path)
    assert_one_line(done, 2, "recipe.yaml: exists; name another file, or remove it")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_the_output_is_a_name_that_is_free(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert free_output("demo-lm-lora", demo) == "out/demo-lm-lora"
    (tmp_path / "out/demo-lm-lora").mkdir(parents=True)
    assert free_output("demo-lm-lora", demo) == "out/demo-lm-lora-2"
    assert free_output("../:.a b-lora", demo) == "out/a-b-lora"
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert free_output("x", Path("model").absolute().parent) == "../x"
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("")
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="output: out/x cannot be written"):
        free_output("x", tmp_path / "file" / "model")


def test_a_process_of_its_own_writes_the_usual_recipe_and_loads_no_torch_for_what_is_not_there(demo, tmp_path):
    done = real("init", demo, "-o", tmp_path / "recipe.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert load_recipe(tmp_path / "recipe.yaml").operations[0].op == "add_lora"
    program = (
        "import sys; from graftkit.cli import run; code = run(['init', '/no/such', '--for', 'tools']);"
        " sys.exit('torch' in sys.modules or code)"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "graftkit: /no/such: is neither a folder nor a hub id\n")
