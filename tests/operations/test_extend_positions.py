"""extend_positions: learned tables grow and old lengths stay bit for bit; rotary positions are scaled in config.json alone."""

import importlib
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from support import tiny
from support.command import assert_one_line, here
from support.recipes import applied, apply_by_command, config_of, load, recipe, save

import graftkit
from graftkit import engine
from graftkit.architecture.rope import with_rope
from graftkit.checkpoint.computed import computed
from graftkit.errors import RecipeError, VerificationFailed
from graftkit.operations.weights.position_rows import stretched
from graftkit.verification import positions as longest
from graftkit.verification.promises import PromiseClass

#: The file: the name in its package is the function.
operation = importlib.import_module("graftkit.operations.extend_positions")

#: Family -> its tables, how many rows belong to no position, and what config.json says of positions.
TABLES = {
    "bert": (("bert.embeddings.position_embeddings.weight",), 0, 64),
    "roberta": (("roberta.embeddings.position_embeddings.weight",), 1, 66),
    "gpt2": (("transformer.wpe.weight",), 0, 64),
    "bart": (("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"), 2, 64),
    "opt": (("model.decoder.embed_positions.weight",), 2, 128),
}


def longer(count, **fields):
    return {"op": "extend_positions", "max_position_embeddings": count, **fields}


def stored(directory):
    return load_file(directory / "model.safetensors")


def positions_of(report):
    return next(found for found in report.findings if found.name == "positions")


@pytest.fixture(scope="module")
def models(sources, tmp_path_factory):
    """The sources of all families of TABLES, those of OPT too."""
    opt = tmp_path_factory.mktemp("opt") / "source"
    tiny.build("OPTForCausalLM", opt)
    return lambda family: opt if family == "opt" else sources(family)


@pytest.mark.parametrize("family", TABLES)
def test_rows_are_repeated_from_the_first_position_and_old_lengths_keep_their_bits(family, models, tmp_path):
    names, reserved, count = TABLES[family]
    source, new = models(family), 3 * count - 5
    report = graftkit.apply(recipe(source, tmp_path / "out", longer(new), verify={"first_step": True}))
    before, after = stored(source), stored(tmp_path / "out")
    for name in names:
        old, used = before[name], before[name][reserved:]
        assert len(after[name]) == len(old) + new - count
        assert torch.equal(after[name], torch.cat([old, used, used, used])[: len(after[name])])
    assert all(torch.equal(after[name], value) for name, value in before.items() if name not in names)
    assert report.plan.promise.strength is PromiseClass.BITWISE
    assert all(item.bitwise for item in report.outputs.comparisons)
    found = positions_of(report)
    assert set(found.rows_used.values()) == {(reserved, len(after[names[0]]) - 1)}
    assert found.length == found.tokens == len(after[names[0]]) - reserved
    (step,) = (check for check in report.findings if check.name == "first_step")
    assert not step.gradients.differs
    model, info = load(tmp_path / "out")
    assert not info["missing_keys"]
    assert model.config.max_position_embeddings == new


def test_a_stretched_table_keeps_its_ends_and_what_belongs_to_no_position(sources, tmp_path):
    output, report = applied(sources("roberta"), tmp_path, longer(130, init="interpolate"))
    name = TABLES["roberta"][0][0]
    before, after = stored(sources("roberta"))[name], stored(output)[name]
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1::2], before[1:]), "129 positions of 65: one between each two"
    assert torch.equal(after[2::2], ((before[1:-1].double() + before[2:].double()) / 2).float())
    assert report["promise"]["strength"] == "intentional"
    (logits,) = (item for item in report["outputs"]["comparisons"] if item["name"] == "logits")
    assert logits["kl_max"] > 0
    ends = stretched(before, 200)
    assert torch.equal(ends[0], before[0].double())
    assert torch.equal(ends[-1], before[-1].double())
    assert torch.equal(stretched(before[:1], 3), before[:1].double().expand(3, -1))


@pytest.mark.parametrize("init", ["mean", "zeros", "normal", {"scheme": "mean_cov", "eps": 0.1}])
def test_new_rows_by_a_scheme_leave_the_old_ones(init, sources, tmp_path):
    made = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        report = graftkit.apply(recipe(sources("bert"), tmp_path / name, longer(96, init=init), seed=seed))
        made.append(stored(tmp_path / name)[TABLES["bert"][0][0]])
    old = stored(sources("bert"))[TABLES["bert"][0][0]]
    assert all(torch.equal(table[:64], old) for table in made)
    assert torch.equal(made[0], made[1])
    sampled = init not in ("mean", "zeros")
    assert torch.equal(made[0], made[2]) != sampled
    if init == "mean":
        assert torch.equal(made[0][64:], old.double().mean(0).float().expand(32, -1))
    assert report.plan.promise.strength is PromiseClass.BITWISE


def test_rotary_positions_change_config_json_alone(sources, tmp_path):
    report = graftkit.apply(recipe(sources("llama"), tmp_path / "plain", longer(300)))
    assert report.plan.promise.strength is PromiseClass.BITWISE
    assert [(change.place, change.old, change.new) for change in report.plan.values] == [
        ("max_position_embeddings", 128, 300)
    ]
    assert report.plan.tensors == ()
    assert positions_of(report).tokens == 300
    yarn = {"rope_type": "yarn", "factor": 4.0}
    report = graftkit.apply(recipe(sources("llama"), tmp_path / "yarn", longer(512, rope_parameters=yarn)))
    found = config_of(tmp_path / "yarn")["rope_parameters"]
    assert found == {**config_of(sources("llama"))["rope_parameters"], **yarn, "original_max_position_embeddings": 128}
    assert report.plan.promise.strength is PromiseClass.INTENTIONAL
    assert any(not item.bitwise for item in report.outputs.comparisons)
    assert load(tmp_path / "yarn")[0].model.rotary_emb.config.rope_parameters == found


@pytest.mark.parametrize(
    ("before", "given", "place", "after"),
    [
        ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_type": "linear", "factor": 2.0}, "rope_scaling",
         {"rope_type": "linear", "factor": 2.0}),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}, {"rope_type": "dynamic", "factor": 4.0},
         "rope_parameters", {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0}),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
         {"rope_type": "yarn", "factor": 8.0}, "rope_parameters",
         {"rope_theta": 1e4, "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}),
    ],
    ids=["an older form", "another kind", "once more"],
)  # fmt: skip
def test_rotary_parameters_take_the_form_of_the_file(before, given, place, after):
    config = {"model_type": "llama", "max_position_embeddings": 256, **before}
    assert with_rope(config, (), given, 64)[place] == after


def test_rotary_parameters_of_kinds_of_layers_are_given_by_kind():
    plain = {"rope_type": "default", "rope_theta": 1e4}
    config = {"model_type": "gemma3_text", "max_position_embeddings": 256,
              "rope_parameters": {"full_attention": plain, "sliding_attention": plain}}  # fmt: skip
    with pytest.raises(RecipeError, match="for each of full_attention, sliding_attention; give one or all"):
        with_rope(config, (), {"rope_type": "linear", "factor": 2.0}, 64)
    found = with_rope(config, (), {"full_attention": {"rope_type": "linear", "factor": 2.0}}, 64)["rope_parameters"]
    assert found == {
        "full_attention": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0},
        "sliding_attention": plain,
    }


def test_what_cannot_be_is_one_line(sources, tmp_path):
    yarn = {"rope_type": "yarn", "factor": 4.0}
    for family, op, code, words in (
        ("bert", longer(64), 2, "operations.0.max_position_embeddings: the model has 64 already"),
        ("bert", longer(63), 2, "the model has 64 positions, and none is taken away"),
        ("bert", longer(128, rope_parameters=yarn), 2, "rope_parameters: BertForMaskedLM has a table of positions"),
        ("llama", longer(256, init="copy"), 2, "init: has no meaning: LlamaForCausalLM stores no table of positions"),
        ("llama", longer(256, init="copy", rope_parameters=yarn), 2, "rotary positions have no table that init could fill"),
        ("llama", longer(256, rope_parameters={**yarn, "rope_type": "yran"}), 2, "rope_type must name a way of scaling, found yran; did you mean 'yarn'?"),
        ("llama", longer(256, rope_parameters={**yarn, "beta": 1}), 2, "Unrecognized keys in `rope_parameters` for 'rope_type'='yarn': {'beta'}"),
        ("llama", longer(256, rope_parameters={"rope_type": "yarn"}), 2, "Missing required keys"),
        ("t5", longer(256), 3, "T5ForConditionalGeneration: config.json names no number of positions"),
        ("bert", longer("many"), 2, "max_position_embeddings"),
        ("bert", longer(128, init="stretch"), 2, "init"),
    ):  # fmt: skip
        done, output = apply_by_command(sources(family), tmp_path, op)
        assert_one_line(done, code, words)
        assert not output.exists()


def test_a_table_that_the_class_computes_grows_as_the_class_has_it(tmp_path):
    """Pegasus has sines, never trained, and stores them."""
    tiny.build("PegasusForConditionalGeneration", tmp_path / "source")
    report = graftkit.apply(recipe(tmp_path / "source", tmp_path / "out", longer(300)))
    names = [name for name in stored(tmp_path / "out") if "embed_positions" in name]
    config = transformers.PegasusConfig(**{**config_of(tmp_path / "source"), "max_position_embeddings": 300})
    fresh = transformers.PegasusForConditionalGeneration(config).state_dict()
    for name in names:
        assert torch.equal(stored(tmp_path / "out")[name][128:], fresh[name][128:])
        assert torch.equal(stored(tmp_path / "out")[name][:128], stored(tmp_path / "source")[name])
    assert len(names) == 2
    assert "more as its class makes them" in " ".join(report.plan.notes)
    assert all(item.bitwise for item in report.outputs.comparisons)
    with pytest.raises(RecipeError, match="init: has no meaning: PegasusForConditionalGeneration computes its table"):
        graftkit.plan(recipe(tmp_path / "source", tmp_path / "never", longer(300, init="copy")))


def test_the_tokenizers_bound_and_old_lists_of_positions_follow(sources, tmp_path):
    source, name = tmp_path / "source", "bert.embeddings.position_ids"
    save(sources("bert"), source, {**stored(sources("bert")), name: torch.arange(64)[None]})
    output, report = applied(source, tmp_path, longer(100))
    assert json.loads((output / "tokenizer_config.json").read_text())["model_max_length"] == 100
    assert name not in stored(output)
    notes = " ".join(report["notes"])
    assert "model_max_length of the tokenizer was 64 and is 100 now" in notes
    assert f"left out, since the class numbers positions itself: {name}" in notes
    report = graftkit.plan(recipe(sources("llama"), tmp_path / "never", longer(300)))
    assert "model_max_length of the tokenizer is 64 and stays" in report.outcomes[0].notes


def test_other_operations_stand_beside_it(models, tmp_path):
    tokens = {"op": "extend_vocab", "special_tokens": [f"<|{n}|>" for n in range(14)]}
    operations = ({"op": "set_embeddings", "tied": False}, longer(100), tokens, longer(128), {"op": "add_lora", "r": 4})
    report = graftkit.apply(recipe(models("gpt2"), tmp_path / "out", *operations, verify={"lens": True}))
    table, old = stored(tmp_path / "out")["transformer.wpe.weight"], stored(models("gpt2"))["transformer.wpe.weight"]
    assert torch.equal(table, torch.cat([old, old[:36], old[:28]]))
    assert report.plan.promise.strength is PromiseClass.BITWISE
    assert report.plan.correspondence.positions.source == 64
    assert report.plan.correspondence.positions.result == 128
    grown = graftkit.apply(recipe(models("gpt2"), tmp_path / "base", *operations[:3], verify={"first_step": True}))
    (step,) = (check for check in grown.findings if check.name == "first_step")
    assert not step.gradients.differs
    narrow = {"op": "cast", "dtype": "bfloat16"}
    report = graftkit.apply(recipe(models("gpt2"), tmp_path / "narrow", longer(100), narrow))
    assert torch.equal(stored(tmp_path / "narrow")["transformer.wpe.weight"], torch.cat([old, old[:36]]).bfloat16())
    assert positions_of(report).tokens == 100


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_verify_knows_it_from_the_report(family, models, tmp_path):
    """Of one the tokenizer's bound is another one too."""
    output, _ = applied(models(family), tmp_path, longer(100))
    done = here("verify", models(family), output)
    assert done.returncode == 0, done.stdout + done.stderr
    document = output / "tokenizer_config.json"
    document.write_text(document.read_text().replace("<unk>", "<pad>"))
    assert here("verify", models(family), output).returncode == 4


def test_a_model_in_memory_takes_longer_sequences(sources):
    model = transformers.GPT2LMHeadModel.from_pretrained(sources("gpt2"))
    new, _, report = graftkit.graft(model, None, {"version": 1, "operations": [longer(100)]})
    old = model.transformer.wpe.weight
    assert torch.equal(new.transformer.wpe.weight, torch.cat([old, old[:36]]))
    assert positions_of(report).tokens == 100
    assert new(torch.arange(100)[None]).logits.isfinite().all()


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_a_length_that_is_too_dear_is_run_at_its_last_positions(family, models, tmp_path, monkeypatch):
    monkeypatch.setattr(longest, "OPERATIONS", 1)
    _, reserved, count = TABLES[family]
    found = positions_of(graftkit.apply(recipe(models(family), tmp_path / "out", longer(100))))
    last = reserved + found.length - 1
    assert (found.tokens, set(found.rows_used.values())) == (longest.TAIL, {(last - longest.TAIL + 1, last)})
    assert count < 100
    assert "the last 16 positions" in next(found.rows()).figure


def test_a_length_that_cannot_be_run_is_said(models, tmp_path, monkeypatch):
    monkeypatch.setattr(longest, "OPERATIONS", 1)
    found = positions_of(graftkit.apply(recipe(models("bart"), tmp_path / "out", longer(100))))
    assert "the forward takes no position_ids" in found.skipped
    assert next(found.rows()).result == "not run"


def huge(tensor, table, more, init, seed):
    """New rows that are finite, and so large that what is made of them is not."""
    rows = torch.cat([load_file(tensor.path)[table.disk], torch.full((more, *tensor.shape[1:]), 3e38)])
    return computed(tensor.dtype, tuple(rows.shape), lambda: rows)


def shifted(tensor, table, more, init, seed):
    """New rows before the old ones."""
    rows = load_file(tensor.path)[table.disk]
    return computed(tensor.dtype, (len(rows) + more, *rows.shape[1:]), lambda: torch.cat([rows[:more], rows]))


@pytest.mark.parametrize(
    ("part", "fault", "words"),
    [
        ("longer_table", huge, r"positions: .* of a sequence of 100 tokens is not finite"),
        ("longer_table", shifted, r"outputs: hidden_states.0 of probe .* differs"),
    ],
    ids=["too large", "shifted"],
)
def test_planted_faults_are_caught(part, fault, words, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(operation, part, fault)
    with pytest.raises(VerificationFailed, match=words):
        engine.apply(recipe(sources("gpt2"), tmp_path / "out", longer(100)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (100, "a sequence of 100 tokens fails"),
        (98, r"the last 98 positions look up rows 1 to 98 of .*, planned were rows 2 to 99"),
    ],
)
def test_rows_that_belong_to_no_position_and_were_taken_for_one_are_caught(
    length, words, sources, tmp_path, monkeypatch
):
    right = operation.PositionsCheck
    monkeypatch.setattr(operation, "PositionsCheck", lambda _, more, tables: right(length, more, tables))
    with pytest.raises(VerificationFailed, match=words):
        engine.apply(recipe(sources("roberta"), tmp_path / "out", longer(100)))


def test_the_recipe_gives_four_times_the_length(demo, tmp_path):
    done = here("apply", "recipes/long_context.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "verified (intentional): rotary positions are scaled by yarn" in text
    assert "KL(old, new) of logits mean" in text
    found = config_of(tmp_path / "out")
    assert found["max_position_embeddings"] == 2048
    assert (
        found["rope_parameters"]["original_max_position_embeddings"]
        == config_of(demo)["max_position_embeddings"]
        == 512
    )
    assert (tmp_path / "out/adapter/adapter_model.safetensors").is_file()
    model, _ = load(tmp_path / "out")
    assert model(torch.arange(2048)[None]).logits.isfinite().all()
