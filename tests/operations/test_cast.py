"""cast: each value the nearest of the new dtype; outputs are held against the source in the dtype that it had, and in float64."""

import functools
import importlib
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.adapters import make_adapter
from support.command import assert_one_line, here
from support.recipes import applied, apply_by_command, config_of, load, recipe, save

import graftkit
from graftkit import engine
from graftkit.checkpoint.cast import cast as cast_tensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor
from graftkit.checkpoint.tensors import Computed, patch_rows
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.verification.promises import PromiseClass

#: The file: the name in its package is the function.
operation = importlib.import_module("graftkit.operations.cast")


def to(dtype, *keep):
    return {"op": "cast", "dtype": dtype, **({"keep": list(keep)} if keep else {})}


def stored(directory):
    return load_file(directory / "model.safetensors")


def finding(report):
    return next(found for found in report.findings if found.name == "cast")


def changed(source, place, **values):
    """A copy of a checkpoint in which the first value of each named tensor, its dots underlined, is another."""
    tensors = stored(source)
    for name, value in values.items():
        tensors[name.replace("__", ".")].view(-1)[0] = value
    save(source, place, tensors)
    return place


def test_narrowing_rounds_each_value_once_and_says_by_how_much(sources, tmp_path):
    report = graftkit.apply(recipe(sources("llama"), tmp_path / "out", to("bfloat16")))
    before, after = stored(sources("llama")), stored(tmp_path / "out")
    assert all(
        after[name].dtype == torch.bfloat16 and torch.equal(after[name], v.bfloat16()) for name, v in before.items()
    )
    assert config_of(tmp_path / "out")["dtype"] == "bfloat16"
    assert load(tmp_path / "out")[0].dtype == torch.bfloat16
    found = finding(report)
    wrong = sum(int((after[name].float() != value).sum()) for name, value in before.items())
    assert (found.rounding.changed, found.rounding.values) == (wrong, sum(value.numel() for value in before.values()))
    assert found.rounding.zeroed == 0
    relative = max(float(((after[n].double() - v.double()) / v.double()).abs().max()) for n, v in before.items())
    assert found.rounding.largest == relative
    assert found.error <= found.unit == 2.0**-8
    assert 1 <= found.noise.ratio <= 2
    assert found.noise.total**2 == pytest.approx(found.noise.arithmetic**2 + found.noise.weights**2, rel=0.5)
    assert report.plan.promise.strength is PromiseClass.ROUNDED
    assert any(f"{wrong:,} of 39,776 values rounded" in row.figure for row in found.rows())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_widening_changes_no_value_and_no_output_of_the_dtype_that_it_had(family, sources, tmp_path):
    source = sources(family, "bfloat16")
    report = graftkit.apply(recipe(source, tmp_path / "out", to("float32"), verify={"lens": True, "first_step": True}))
    before, after = stored(source), stored(tmp_path / "out")
    assert all(after[name].dtype == torch.float32 and torch.equal(after[name], v.float()) for name, v in before.items())
    assert report.plan.promise.strength is PromiseClass.BITWISE
    assert report.outputs.dtype == "bfloat16"
    assert all(item.bitwise for item in report.outputs.comparisons)
    assert finding(report).noise.weights == 0
    assert not any(check.failures for check in report.findings)
    done = here("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr


def test_back_from_a_wider_dtype_the_bits_are_those_of_the_source(sources, tmp_path):
    source = sources("llama", "bfloat16")
    graftkit.apply(recipe(source, tmp_path / "wide", to("float32")))
    report = graftkit.apply(recipe(tmp_path / "wide", tmp_path / "back", to("bfloat16")))
    before, after = stored(source), stored(tmp_path / "back")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert finding(report).rounding.changed == 0
    assert finding(report).noise.ratio == 1


@pytest.mark.parametrize(
    "dtypes", [("float64", "bfloat16"), ("float64", "float16"), ("bfloat16", "float16"), ("float16", "bfloat16")]
)
def test_a_value_is_rounded_once_from_whatever_it_was(dtypes, sources, tmp_path):
    """What lies just above a tie in float64 is a tie in float32, from which it would be rounded down."""
    old, new = dtypes
    save(
        sources("llama"),
        tmp_path / "source",
        {n: v.to(getattr(torch, old)) for n, v in stored(sources("llama")).items()},
    )
    config = {**config_of(sources("llama")), "dtype": old}
    (tmp_path / "source/config.json").write_text(json.dumps(config))
    unit = torch.finfo(getattr(torch, new)).eps
    source = changed(tmp_path / "source", tmp_path / "tie", model__norm__weight=1 + unit / 2 + 2.0**-40)
    graftkit.apply(recipe(source, tmp_path / "out", to(new)))
    found, wanted = stored(tmp_path / "out"), stored(source)
    if old == "float64":
        assert float(found["model.norm.weight"][0]) == 1 + unit
    else:
        assert all(torch.equal(found[name], value.to(getattr(torch, new))) for name, value in wanted.items())


def test_kept_tensors_stay_byte_for_byte(sources, tmp_path):
    output, report = applied(sources("llama"), tmp_path, to("bfloat16", "*norm*", "!model.norm.weight"))
    before, after = stored(sources("llama")), stored(output)
    kept = {name for name, value in after.items() if value.dtype == torch.float32}
    assert kept == {name for name in before if "norm" in name} - {"model.norm.weight"}
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert "kept as stored" in " ".join(report["notes"])


def test_config_json_names_the_dtype_in_the_form_that_it_has(sources, tmp_path):
    save(sources("llava"), tmp_path / "old", stored(sources("llava")))
    config = config_of(sources("llava"))
    config["torch_dtype"] = config.pop("dtype")
    config["text_config"]["torch_dtype"] = config["text_config"].pop("dtype", "float32")
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    planned = graftkit.plan(recipe(tmp_path / "old", tmp_path / "out", to("bfloat16")))
    assert planned.result.config["torch_dtype"] == "bfloat16"
    assert planned.result.config["text_config"]["torch_dtype"] == "bfloat16"
    assert "dtype" not in planned.result.config
    assert planned.result.config["vision_config"].get("dtype") in (None, "bfloat16")
    bare = {key: value for key, value in config.items() if key != "torch_dtype"}
    (tmp_path / "old/config.json").write_text(json.dumps(bare))
    assert (
        graftkit.plan(recipe(tmp_path / "old", tmp_path / "out", to("bfloat16"))).result.config["dtype"] == "bfloat16"
    )


def test_what_cannot_be_cast_is_one_line(sources, tmp_path):
    for op, words in (
        (to("float32"), "operations.0.dtype: every floating tensor is float32 already"),
        (to("bfloat16", "*"), "every floating tensor that is not kept is bfloat16 already"),
        (to("bfloat16", "*nrom*"), "keep.0: the pattern '*nrom*' matches no tensor; did you mean '*norm*'?"),
        (to("float8_e4m3fn"), "dtype: float8_e4m3fn needs scales beside its values"),
        (to("half"), "dtype"),
    ):
        done, output = apply_by_command(sources("llama"), tmp_path, op)
        assert_one_line(done, 2, words)
        assert not output.exists()


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        (70000.0, 3, "tensor 'model.norm.weight' holds 70000, beyond the largest float16, 65504; take bfloat16, which"),
        (1e-9, 4, "tensor 'model.norm.weight' lost 1 of its norm, more than the 0.00049 that rounding explains: 32 of 32 values are too"),
    ],
    ids=["too large", "too small"],
)  # fmt: skip
def test_what_a_dtype_cannot_reach_is_refused_by_name(value, code, words, sources, tmp_path):
    tensors = stored(sources("llama"))
    name = "model.norm.weight"
    save(sources("llama"), tmp_path / "source", {**tensors, name: torch.full_like(tensors[name], value)})
    done, output = apply_by_command(tmp_path / "source", tmp_path, to("float16"))
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not output.exists()
    assert graftkit.apply(recipe(tmp_path / "source", tmp_path / "out", to("bfloat16")))


def test_a_kept_tensor_helps_no_loader_that_casts_it(sources, tmp_path):
    """transformers loads the whole model in the dtype of config.json, and what lies beyond that is infinite there."""
    source = changed(sources("llama"), tmp_path / "source", model__norm__weight=70000.0)
    with pytest.raises(VerificationFailed, match="outputs in float16 are inf off the source's"):
        graftkit.apply(recipe(source, tmp_path / "out", to("float16", "model.norm.weight")))


def test_what_other_operations_made_is_cast_too(sources, tmp_path):
    """A merge, new rows and a copy of the table: none is stored, and each is in the dtype."""
    base, adapter = make_adapter(tmp_path, "LlamaForCausalLM", base=sources("llama_tied"), target_modules=["q_proj"])
    operations = (
        {"op": "merge_adapter", "adapter": str(adapter)},
        {"op": "set_embeddings", "tied": False},
        {"op": "extend_vocab", "special_tokens": [f"<|{n}|>" for n in range(14)], "init": "mean"},
    )
    graftkit.apply(recipe(base, tmp_path / "wide", *operations))
    report = graftkit.apply(recipe(base, tmp_path / "out", *operations, to("bfloat16")))
    wide, found = stored(tmp_path / "wide"), stored(tmp_path / "out")
    assert wide.keys() == found.keys()
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in wide.items())
    assert report.plan.promise.strength is PromiseClass.ROUNDED
    assert finding(report).skipped == "other operations of the recipe change outputs too"


def test_operations_that_change_no_output_leave_it_judged(sources, tmp_path):
    tokens = {"op": "extend_vocab", "special_tokens": [f"<|{n}|>" for n in range(14)], "init": "mean"}
    for name, operations in (("behind", (tokens, to("bfloat16"))), ("before", (to("bfloat16"), tokens))):
        report = graftkit.apply(recipe(sources("llama"), tmp_path / name, *operations, {"op": "add_lora", "r": 4}))
        assert finding(report).noise.ratio <= 2
        assert {value.dtype for value in stored(tmp_path / name).values()} == {torch.bfloat16}


def test_lazy_tensors_of_every_kind_are_cast(sources):
    tensor = Checkpoint.open(str(sources("llama"))).tensors["lm_head.weight"]
    rows = torch.full((2, 32), 1 / 3)
    whole = torch.cat([read_tensor(tensor), rows])[:, :]
    patched = patch_rows(
        tensor,
        axis=0,
        rows=(331, 332),
        size=333,
        produce=lambda: memoryview(rows.view(-1).view(torch.uint8).numpy().data),
    )
    made = Computed("F32", (333, 32), lambda: memoryview(whole.view(-1).view(torch.uint8).numpy().data))
    for lazy in (patched, made):
        assert torch.equal(read_tensor(cast_tensor(lazy, "BF16")), whole.bfloat16())
        assert cast_tensor(lazy, "F32") is lazy


def test_a_model_in_memory_is_cast(sources):
    model = transformers.AutoModelForCausalLM.from_pretrained(sources("llama"))
    new, _, report = graftkit.graft(model, None, {"version": 1, "operations": [to("bfloat16")]})
    assert new.dtype == torch.bfloat16
    assert all(torch.equal(value.bfloat16(), new.state_dict()[name]) for name, value in model.state_dict().items())
    assert finding(report).noise.ratio <= 2


def test_parameters_that_are_paged_in_are_compared_in_the_dtype_of_the_source(sources, tmp_path):
    report = graftkit.apply(
        recipe(sources("llama", "bfloat16"), tmp_path / "out", to("float32"), verify={"paged": True})
    )
    assert report.outputs.paged
    assert all(item.bitwise for item in report.outputs.comparisons)


def truncated(tensor, dtype, look):
    """What an earlier kernel did: the last bits cut off."""

    def cut():
        bits = read_tensor(tensor).view(torch.int32) & -65536
        return memoryview(bits.view(torch.float32).bfloat16().view(-1).view(torch.uint8).numpy().data)

    return Computed(dtype, tensor.shape, cut)


def other_epsilon(config, dtype):
    return {**config, "dtype": dtype, "rms_norm_eps": 0.5}


@pytest.mark.parametrize(
    ("part", "fault", "words"),
    [
        ("cast_tensor", truncated, r"cast: tensor '.*' does not hold the nearest values, at [\d,]+ of"),
        ("cast_tensor", lambda tensor, dtype, look: cast_tensor(cast_tensor(tensor, "F16"), dtype), "does not hold the nearest values"),
        ("config_in_dtype", other_epsilon, r"cast: outputs in bfloat16 are .* times what its arithmetic does by itself, above 2"),
    ],
    ids=["truncated", "rounded twice", "another epsilon"],
)  # fmt: skip
def test_planted_faults_are_caught(part, fault, words, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(operation, part, fault)
    with pytest.raises(VerificationFailed, match=words):
        engine.apply(recipe(sources("llama"), tmp_path / "out", to("bfloat16")))
    assert not (tmp_path / "out").exists()


def test_a_forward_that_fails_in_the_new_dtype_is_caught(sources, tmp_path, monkeypatch):
    forward = transformers.LlamaForCausalLM.forward

    @functools.wraps(forward)
    def refusing(self, *args, **kwargs):
        if self.dtype == torch.bfloat16 and torch.get_default_dtype() is torch.float32:
            raise ValueError("no kernel")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", refusing)
    with pytest.raises(VerificationFailed, match=r"cast: the result's forward fails in bfloat16 on probe .*no kernel"):
        engine.apply(recipe(sources("llama"), tmp_path / "out", to("bfloat16")))


def test_a_value_that_widening_changed_is_caught_in_the_dtype_that_it_had(sources, tmp_path):
    source = sources("llama", "bfloat16")
    output, _ = applied(source, tmp_path, to("float32"))
    tensors = stored(output)
    tensors["model.norm.weight"][3] *= 1.5
    save_file(tensors, output / "model.safetensors", {"format": "pt"})
    found = graftkit.verify(str(source), str(output))
    assert any("model.norm.weight" in sentence for sentence in found.failures)


def test_two_dtypes_without_a_report_are_a_difference(sources, tmp_path):
    """Nobody vouches for it: `verify A B` says so."""
    output, _ = applied(sources("llama"), tmp_path, to("bfloat16"))
    (output / "graft_report.json").unlink()
    assert graftkit.verify(str(sources("llama")), str(output)).failures


def test_eight_bits_are_refused(sources, tmp_path):
    tensors = stored(sources("llama"))
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save(sources("llama"), tmp_path / "small", tensors)
    with pytest.raises((InputRejected, RecipeError), match=r"eight bits, which mean nothing without their scales"):
        graftkit.plan(recipe(tmp_path / "small", tmp_path / "out", to("bfloat16")))


def test_the_recipe_widens_all_but_norms(demo, tmp_path):
    done = here("apply", "recipes/cast.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "verified (bitwise)" in done.stdout
    before, after = stored(demo), stored(tmp_path / "out")
    assert {value.dtype for name, value in after.items() if "norm" in name} == {torch.bfloat16}
    assert {value.dtype for name, value in after.items() if "norm" not in name} == {torch.float32}
    assert all(torch.equal(after[name].bfloat16(), value) for name, value in before.items())
