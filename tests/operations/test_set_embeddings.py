"""set_embeddings: one table becomes two, by copy, or two become one; what the class cannot is refused with the reason."""

import importlib
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.command import assert_one_line, here
from support.recipes import applied, apply_by_command, config_of, load, recipe, save
from support.shrink import HINTS, SCALES, tiny_config

import graftkit
from graftkit import engine
from graftkit.architecture import skeleton as sk
from graftkit.architecture.embedding_ties import find_way
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.operations import Outcome
from graftkit.verification.first_step import compare_first_step
from graftkit.verification.promises import PromiseClass
from graftkit.verification.subject import Subject

#: The file: the name in its package is the function.
operation = importlib.import_module("graftkit.operations.set_embeddings")

UNTIE = {"op": "set_embeddings", "tied": False}
TIE = {"op": "set_embeddings", "tied": True}

#: Family -> the weight that the output embedding gets, and the one that it is a copy of.
COPIES = {
    "llama_tied": ("lm_head.weight", "model.embed_tokens.weight"),
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
}


@pytest.fixture(scope="module")
def parted(sources, tmp_path_factory):
    """What untying gives, by family, each made once: the folder and the report."""
    made = {}

    def find(family):
        if family not in made:
            output = tmp_path_factory.mktemp("untied") / family
            made[family] = output, graftkit.apply(recipe(sources(family), output, UNTIE, verify={"first_step": True}))
        return made[family]

    return find


def stored(directory):
    return load_file(directory / "model.safetensors")


def both_tables(source, place, change=lambda table: table.clone(), *, flag):
    """A checkpoint of a tied Llama that stores both tables, the output's being what ``change`` makes of the input's."""
    tensors = stored(source)
    tensors["lm_head.weight"] = change(tensors["model.embed_tokens.weight"])
    save(source, place, tensors)
    (place / "config.json").write_text(json.dumps({**config_of(source), "tie_word_embeddings": flag}))
    return place


def next_row(table):
    """The table with one row that is another."""
    other = table.clone()
    other[7, 3] = 2.0
    return other


@pytest.mark.parametrize("family", COPIES)
def test_the_output_table_is_a_copy_that_trains_alone(family, sources, parted):
    output, report = parted(family)
    copy, origin = COPIES[family]
    before, after = stored(sources(family)), stored(output)
    assert torch.equal(after[copy], before[origin])
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model, info = load(output)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert report.plan.promise.strength is PromiseClass.BITWISE
    assert all(item.bitwise for item in report.outputs.comparisons)
    assert f"copied: {min(after.keys() - before.keys())}" in report.plan.outcomes[0].notes[0]


@pytest.mark.parametrize("family", COPIES)
def test_the_gradient_of_one_table_is_the_sum_of_both(family, parted):
    """The biases of a masked language model are two as well, of which it computes with one."""
    (found,) = (check for check in parted(family)[1].findings if check.name == "first_step")
    assert found.failures == ()
    assert found.gradients is not None
    assert not found.gradients.differs
    assert set(found.moves) == {
        name for name in found.moves if name.startswith(COPIES[family][0].removesuffix("weight"))
    }
    assert set(found.moves.values()) == {0}


@pytest.mark.parametrize("family", COPIES)
def test_two_equal_tables_become_the_one_that_they_were(family, sources, parted, tmp_path):
    report = graftkit.apply(recipe(parted(family)[0], tmp_path / "out", TIE, verify={"first_step": True}))
    before, after = stored(sources(family)), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert report.plan.promise.strength is PromiseClass.BITWISE
    model, _ = load(tmp_path / "out")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    (found,) = (check for check in report.findings if check.name == "first_step")
    assert not found.gradients.differs


def test_tables_that_differ_are_made_one_only_where_that_is_meant(sources, tmp_path):
    source = both_tables(sources("llama_tied"), tmp_path / "two", next_row, flag=False)
    done, output = apply_by_command(source, tmp_path, TIE)
    assert_one_line(done, 2, "1 of 331 rows of the output table differ from the input table's, and would be lost; say")
    assert not output.exists()
    output, report = applied(source, tmp_path, {**TIE, "allow_change": True})
    assert report["promise"]["strength"] == "intentional"
    assert "lm_head.weight" not in stored(output)
    assert stored(output).keys() == stored(sources("llama_tied")).keys()
    (logits,) = (item for item in report["outputs"]["comparisons"] if item["name"] == "logits")
    assert logits["kl_max"] > 0
    hidden = [item for item in report["outputs"]["comparisons"] if "hidden" in item["name"]]
    assert hidden
    assert all(item["bitwise"] for item in hidden)


def test_a_flag_that_the_loader_could_not_follow_is_made_true(sources, tmp_path):
    """config.json says that they are tied, the file holds two that differ, and so the loader ties nothing."""
    source = both_tables(sources("llama_tied"), tmp_path / "two", next_row, flag=True)
    report = graftkit.apply(recipe(source, tmp_path / "out", UNTIE))
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False
    assert "were two whatever config.json said" in report.plan.outcomes[0].notes[0]
    with pytest.raises(RecipeError, match=r"operations\.0\.tied: 1 of 331 rows"):
        graftkit.plan(recipe(source, tmp_path / "never", TIE))


def test_what_is_as_asked_or_cannot_be_is_one_line(sources, tmp_path):
    twice = both_tables(sources("llama_tied"), tmp_path / "twice", flag=True)
    halves = both_tables(sources("llama_tied"), tmp_path / "halves", lambda table: table.half(), flag=False)
    for source, op, code, words in (
        (sources("llama"), UNTIE, 2, "operations.0.tied: input and output embedding are two tables already"),
        (sources("llama_tied"), TIE, 2, "input and output embedding are tied already"),
        (twice, TIE, 2, "input and output embedding are tied already"),
        (halves, TIE, 3, "halves: the output table is F16 [331, 32], the input table F32 [331, 32]: they cannot be one"),
        (sources("t5"), UNTIE, 3, "T5ForConditionalGeneration: ties its output table, whatever config.json says"),
        (sources("bart"), UNTIE, 3, "parts model.decoder.embed_tokens.weight, model.encoder.embed_tokens.weight too by the same value"),
        (sources("bert_base"), UNTIE, 3, "BertModel: has no output embedding that could be tied to another"),
        (sources("llama"), {**UNTIE, "allow_change": True}, 2, "allow_change: has no meaning with tied: false"),
        (sources("llama"), {"op": "set_embeddings"}, 2, "tied"),
    ):  # fmt: skip
        done, output = apply_by_command(source, tmp_path, op)
        assert_one_line(done, code, words)
        assert not output.exists()


def skeleton_of(name):
    """Config and skeleton of a class, made small."""
    kind = getattr(transformers, name)
    for scale in SCALES:
        try:
            small = tiny_config(kind.config_class, vocab_size=331, live=323, scale=scale, hints=HINTS.get(name))
            config = {**small.to_dict(), "architectures": [name]}
            return config, sk.build_skeleton(config)
        except Exception as error:  # noqa: BLE001 - a config that a class cannot live with fails in any way
            refused = error
    raise refused


@pytest.mark.parametrize(
    ("name", "outer", "inner"),
    [("Florence2ForConditionalGeneration", False, True), ("Kosmos2ForConditionalGeneration", False, False)],
)
def test_the_flag_is_set_where_it_decides_and_nowhere_else(name, outer, inner):
    """The one ties encoder and decoder by the flag of its text config, which stays; the other ties its head by that alone."""
    config, skeleton = skeleton_of(name)
    way = find_way(config, skeleton, tied=False)
    assert way.config["tie_word_embeddings"] is outer
    assert way.config["text_config"]["tie_word_embeddings"] is inner
    assert not way.skeleton.tied.keys() & skeleton.weight_names("get_output_embeddings")


@pytest.mark.parametrize(
    ("name", "tied", "words"),
    [
        ("ZambaForCausalLM", False, r"parts model\.layers\..*\(9 in all\) too by the same value"),
        ("RemBertForMaskedLM", True, "never ties its output table, whatever config.json says"),
        ("DbrxForCausalLM", True, "does not take tie_word_embeddings|transformers refuses it"),
    ],
)
def test_a_class_without_a_way_says_why(name, tied, words):
    with pytest.raises(InputRejected, match=words):
        find_way(*skeleton_of(name), tied=tied)


def test_a_class_that_computes_something_else_without_the_flag_is_refused(sources, tmp_path, monkeypatch):
    """So T5 did, which scales what goes into a tied output table."""
    forward = transformers.LlamaForCausalLM.forward

    def scaled(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        found.logits = found.logits * 0.5 if self.config.tie_word_embeddings else found.logits
        return found

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", scaled)
    with pytest.raises(InputRejected, match="computes something else where tie_word_embeddings is false"):
        graftkit.plan(recipe(sources("llama_tied"), tmp_path / "out", UNTIE))


def test_new_tokens_and_an_adapter_come_behind(sources, tmp_path):
    tokens = {"op": "extend_vocab", "special_tokens": [f"<|{n}|>" for n in range(14)], "output_init": "zeros"}
    report = graftkit.apply(
        recipe(sources("llama_tied"), tmp_path / "out", UNTIE, tokens, {"op": "add_lora", "r": 4}, verify={"first_step": True})
    )  # fmt: skip
    tensors = stored(tmp_path / "out")
    copy, table = tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]
    assert torch.equal(copy[:320], table[:320])
    assert not copy[320:334].any()
    assert table[320:334].any(-1).all()
    assert report.plan.promise.strength is PromiseClass.BITWISE
    grown = graftkit.apply(recipe(sources("llama_tied"), tmp_path / "base", UNTIE, tokens, verify={"first_step": True}))
    (found,) = (check for check in grown.findings if check.name == "first_step")
    assert not found.gradients.differs


def test_a_model_in_memory_gets_a_table_of_its_own(sources):
    model = transformers.AutoModelForCausalLM.from_pretrained(sources("llama_tied"))
    new, _, _ = graftkit.graft(model, None, {"version": 1, "operations": [UNTIE]})
    table, copy = new.get_input_embeddings().weight, new.get_output_embeddings().weight
    given = model.get_input_embeddings().weight.data_ptr()
    assert [value.data_ptr() == given for value in (table, copy)].count(True) == 1
    assert copy.equal(table)
    one, _, _ = graftkit.graft(new, None, {"version": 1, "operations": [TIE]})
    assert one.get_output_embeddings().weight is one.get_input_embeddings().weight


def test_a_copy_of_another_table_is_caught(sources, tmp_path, monkeypatch):
    right = operation.with_copies

    def wrong(checkpoint, tied, after):
        found, copied = right(checkpoint, tied, after)
        return found.with_tensors(dict.fromkeys(copied, found.tensors["cls.predictions.decoder.weight"])), copied

    def other(checkpoint, tied, after):
        found, copied = right(checkpoint, tied, after)
        bias = found.tensors["bert.embeddings.LayerNorm.bias"]
        assert bias.shape != found.tensors[copied[0]].shape
        return found.with_documents({"config.json": {**found.config, "layer_norm_eps": 1e-3}}), copied

    for fault, words in ((wrong, "would not load"), (other, "outputs: hidden_states")):
        monkeypatch.setattr(operation, "with_copies", fault)
        with pytest.raises((InputRejected, VerificationFailed), match=words):
            engine.apply(recipe(sources("bert"), tmp_path / "out", UNTIE))
        assert not (tmp_path / "out").exists()


def test_a_tie_that_nobody_meant_to_undo_is_caught(sources, tmp_path, monkeypatch):
    def unsaid(*args, untied=None, **more):
        assert untied
        return Outcome(*args, **more)

    monkeypatch.setattr(operation, "Outcome", unsaid)
    with pytest.raises(VerificationFailed, match="were tied and are two tensors now, equal still"):
        engine.apply(recipe(sources("llama_tied"), tmp_path / "out", UNTIE))


def test_a_value_of_the_copy_that_is_another_shows_in_the_sum_of_gradients(sources, parted, tmp_path):
    save(parted("llama_tied")[0], tmp_path / "out", {**stored(parted("llama_tied")[0])})
    assert compare_first_step(Subject(sources("llama_tied"), tmp_path / "out")).failures == ()
    tensors = stored(tmp_path / "out")
    tensors["lm_head.weight"][5] *= 1.1
    save_file(tensors, tmp_path / "out/model.safetensors", {"format": "pt"})
    (failure,) = compare_first_step(Subject(sources("llama_tied"), tmp_path / "out")).failures
    assert "the gradient of the old parameter" in failure


def test_the_recipes_make_one_table_and_two_again(tmp_path):
    done = here("apply", "recipes/tie.yaml", "--output", tmp_path / "tied")
    assert done.returncode == 0, done.stderr
    assert "verified (intentional): the output table is dropped" in " ".join(done.stdout.split())
    done = here("apply", "recipes/untie.yaml", f"base_model={tmp_path / 'tied'}", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "verified (bitwise)" in done.stdout
    model, info = load(tmp_path / "out")
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert not info["missing_keys"]
    assert here("verify", tmp_path / "tied", tmp_path / "out").returncode == 0
