"""take_tensors: the chosen tensors are the donor's byte for byte, every other one the base's."""

import dataclasses
import importlib
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import assert_one_line, here
from support.recipes import applied, apply_by_command, config_of, load, recipe

import graftkit
from graftkit import engine
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.verification.promises import PromiseClass

#: The file: the name in its package is the function.
operation = importlib.import_module("graftkit.operations.take_tensors")


def take(donor, *patterns, **fields):
    return {"op": "take_tensors", "donor": str(donor), "tensors": list(patterns), **fields}


def rewritten(source, directory, change):
    """A copy of a checkpoint with other tensors: ``change`` gets and returns them by name."""
    shutil.copytree(source, directory)
    save_file(change(load_file(source / "model.safetensors")), directory / "model.safetensors", {"format": "pt"})
    return directory


def moved(tensors):
    """Every floating value a little further on."""
    return {name: (value * 1.25 + 0.125 if value.is_floating_point() else value) for name, value in tensors.items()}


def origin(result, base, donor):
    """Name of each tensor of the result -> of which of the two it has the bytes."""
    opened = [Checkpoint.open(str(directory)) for directory in (result, base, donor)]
    found = {}
    for name, tensor in opened[0].tensors.items():
        same = [name in one.tensors and equal_bytes(tensor, one.tensors[name]) for one in opened[1:]]
        found[name] = {(True, False): "base", (False, True): "donor"}.get(tuple(same), str(same))
    return found


@pytest.fixture
def tuned(sources, tmp_path):
    return rewritten(sources("llama"), tmp_path / "tuned", moved)


def test_one_layer_is_the_donors_and_all_else_stays(sources, tuned, tmp_path):
    output, report = applied(sources("llama"), tmp_path, take(tuned, "model.layers.1.*", "!*norm*"))
    found = origin(output, sources("llama"), tuned)
    assert {name for name, whose in found.items() if whose == "donor"} == {
        name for name in found if name.startswith("model.layers.1.") and "norm" not in name
    }
    assert set(found.values()) == {"base", "donor"}
    assert report["promise"]["strength"] == "intentional"
    assert max(item["largest"] for item in report["outputs"]["comparisons"] if "logits" in item["name"]) > 0
    assert graftkit.verify(str(sources("llama")), str(output), outputs=False).failures == ()


def test_planning_reads_no_weight_of_the_donor_and_names_what_it_takes(sources, tuned, tmp_path):
    planned = graftkit.plan(recipe(sources("llama"), tmp_path / "out", take(tuned, "lm_head.weight")))
    assert [(change.name, change.operation) for change in planned.tensors] == [("lm_head.weight", "take_tensors")]
    assert planned.promise.strength is PromiseClass.INTENTIONAL
    assert "1 in place of the base's, 0 beside them" in " ".join(planned.notes)


def _with_block(tensors):
    return {**tensors, "mtp.proj.weight": torch.randn(8, 8, generator=torch.Generator().manual_seed(3))}


def test_a_block_that_no_class_loads_comes_along_where_that_is_asked_for(sources, tmp_path):
    """A fine-tune that dropped its block for multi-token prediction gets it back; no output shows it."""
    donor = rewritten(sources("llama"), tmp_path / "donor", _with_block)
    wanted = recipe(sources("llama"), tmp_path / "out", take(donor, "mtp.*"))
    with pytest.raises(InputRejected, match=r"1 tensor of no class of this config: mtp\.proj\.weight"):
        graftkit.plan(wanted)
    report = graftkit.apply({**wanted, "unknown_tensors": "carry"})
    assert report.plan.promise.strength is PromiseClass.BITWISE
    assert all(item.bitwise for item in report.outputs.comparisons)
    assert origin(tmp_path / "out", sources("llama"), donor)["mtp.proj.weight"] == "donor"
    assert graftkit.verify(str(sources("llama")), str(tmp_path / "out")).failures == ()


#: Family -> the class of the part that goes back into it, and the module in which it lies on disk.
PARTS = {
    "llava": ("LlamaForCausalLM", "language_model"),
    "t5": ("T5EncoderModel", "encoder"),
    "llama": ("LlamaModel", "model."),
}


@pytest.mark.parametrize("family", ["llava", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "llama"))])
def test_a_part_that_was_taken_out_goes_back_under_its_wrapper_to_the_same_bytes(family, sources, tmp_path):
    architecture, module = PARTS[family]
    source, off = sources(family), {"verify": {"outputs": False}}
    extract = {"op": "extract_submodel", "architecture": architecture}
    graftkit.apply(recipe(source, tmp_path / "part", extract, **off))
    other = rewritten(source, tmp_path / "other", moved)
    graftkit.apply(recipe(other, tmp_path / "back", take(tmp_path / "part", "*"), **off))
    found = origin(tmp_path / "back", source, other)
    assert set(found.values()) == {"base", "donor"}
    assert {name for name, whose in found.items() if whose == "base"} >= {n for n in found if n.startswith(module)}
    taken = len(Checkpoint.open(str(tmp_path / "part")).tensors)
    assert sum(whose == "base" for whose in found.values()) == taken


def test_a_vision_tower_of_a_wrapper_goes_into_another(sources, tmp_path):
    other = rewritten(sources("llava"), tmp_path / "other", moved)
    report = graftkit.apply(recipe(sources("llava"), tmp_path / "out", take(other, "*vision_tower.*")))
    found = origin(tmp_path / "out", sources("llava"), other)
    assert {name for name, whose in found.items() if whose == "donor"} == {n for n in found if "vision_tower" in n}
    assert all(item.bitwise for item in report.outputs.comparisons)


def test_another_dtype_is_refused_or_rounded_once(sources, tuned, tmp_path):
    wide, name = rewritten(tuned, tmp_path / "wide", lambda t: {n: v.double() for n, v in t.items()}), "lm_head.weight"
    with pytest.raises(
        RecipeError, match=r"is F32 in the base and F64 in the donor; set cast: true to round it to F32"
    ):
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", take(wide, name)))
    report = graftkit.apply(recipe(sources("llama"), tmp_path / "out", take(wide, name, cast=True)))
    assert "1 tensor rounded" in report.plan.promise.observable
    assert torch.equal(
        load_file(tmp_path / "out/model.safetensors")[name], load_file(tuned / "model.safetensors")[name]
    )


def test_what_cannot_be_taken_is_one_line(sources, tuned, tmp_path):
    base = sources("llama")
    cut = rewritten(tuned, tmp_path / "cut", lambda t: {**t, "lm_head.weight": t["lm_head.weight"][:-1].contiguous()})
    for donor, patterns, code, words in (
        (base, ["*"], 2, "donor: is the base itself"),
        (tuned, ["mtp.*"], 2, "the pattern 'mtp.*' matches no tensor of the donor"),
        (tuned, ["*.q_porj.weight"], 2, "did you mean"),
        (tuned, ["!*.bias"], 2, "only leaves out"),
        (cut, ["lm_head.weight"], 3, "has shape [331, 32] in the base and [330, 32] in the donor"),
        (tmp_path / "nowhere", ["*"], 3, "nowhere"),
    ):
        done, output = apply_by_command(base, tmp_path, take(donor, *patterns))
        assert_one_line(done, code, words)
        assert not output.exists()


def test_one_of_two_equal_stored_tables_is_not_taken_alone(sources, tmp_path):
    """The class ties them, and the file holds both: taking one would part them."""

    def both(tensors):
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    base = rewritten(sources("llama_tied"), tmp_path / "base", both)
    donor = rewritten(base, tmp_path / "donor", moved)
    with pytest.raises(RecipeError, match=r"is tied to 'lm_head\.weight', and both are stored; take both"):
        graftkit.plan(recipe(base, tmp_path / "out", take(donor, "model.embed_tokens.weight")))
    graftkit.apply(recipe(base, tmp_path / "out", take(donor, "*embed_tokens*", "lm_head*"), verify={"outputs": False}))
    model, _ = load(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda source, found: found.with_tensors({"lm_head.weight": source.tensors["lm_head.weight"]}), r"'lm_head\.weight' differs"),
        (lambda _, found: found.with_tensors({"model.norm.weight": found.tensors["model.layers.0.input_layernorm.weight"]}),
         r"'model\.norm\.weight' differs"),
    ],
    ids=["the base's in its place", "another tensor of the base"],
)  # fmt: skip
def test_planted_faults_in_what_is_written_are_caught(fault, words, sources, tuned, tmp_path, monkeypatch):
    right = engine.write_checkpoint
    monkeypatch.setattr(
        engine,
        "write_checkpoint",
        lambda source, found, *rest, **more: right(source, fault(source, found), *rest, **more),
    )
    with pytest.raises(VerificationFailed, match=words):
        engine.apply(recipe(sources("llama"), tmp_path / "out", take(tuned, "lm_head.weight")))
    assert not (tmp_path / "out").exists()


@pytest.mark.numerical
def test_planted_faults_in_where_a_module_goes_are_caught(sources, tmp_path, monkeypatch):
    """Two layers of a text model, each in the other's place of the wrapper: all bytes are the donor's, and nothing is missing."""
    extract = {"op": "extract_submodel", "architecture": "LlamaForCausalLM"}
    graftkit.apply(recipe(sources("llava"), tmp_path / "part", extract, verify={"outputs": False}))
    other = rewritten(sources("llava"), tmp_path / "other", moved)
    wanted = recipe(other, tmp_path / "out", take(tmp_path / "part", "*"))
    report = engine.apply(wanted)
    (found,) = (finding for finding in report.findings if finding.name == "taken module")
    assert found.modules == ("model", "model.language_model")
    assert found.values > 0
    right = operation.places_of

    def swapped(donor, base):
        places = right(donor, base)
        turned = {"0": "1", "1": "0"}
        names = {
            disk: re.sub(r"(?<=language_model\.model\.layers\.)[01]", lambda found: turned[found[0]], name)
            for disk, name in places.names.items()
        }
        return dataclasses.replace(places, names=names)

    monkeypatch.setattr(operation, "places_of", swapped)
    with pytest.raises(VerificationFailed, match=r"taken module: hidden_states\.1 of probe .* differs"):
        engine.apply(wanted, overwrite=True)


def test_a_changed_value_of_a_taken_tensor_is_named_afterwards(sources, tuned, tmp_path):
    output, _ = applied(sources("llama"), tmp_path, take(tuned, "model.layers.1.*"))
    tensors = load_file(output / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    done = here("verify", sources("llama"), output, "--no-outputs")
    assert done.returncode == 4
    assert "model.layers.1.mlp.up_proj.weight" in done.stdout + done.stderr
    assert json.loads((output / "config.json").read_text()) == config_of(sources("llama"))


def test_the_recipe_takes_a_layer_of_another_checkpoint(demo, tmp_path):
    donor = rewritten(demo, tmp_path / "donor", moved)
    done = here("apply", "recipes/take_tensors.yaml", "--output", tmp_path / "out", f"operations.0.donor={donor}")
    assert done.returncode == 0, done.stderr
    found, base, other = (load_file(path / "model.safetensors") for path in (tmp_path / "out", demo, donor))
    for name, value in found.items():
        assert value.equal((other if name.startswith("model.layers.1.") else base)[name]), name
