"""Quantized weights unpacked: by convert alone, and by merge_adapter before an adapter is folded in."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import make_adapter
from support.command import assert_one_line, here, real
from support.quantized import fp8, quantized
from support.recipes import applied, config_of, load, recipe

import graftkit
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.operations.weights.dequantize import dequantize
from graftkit.verification.weights.dequantized import DequantizedCheck

CONVERT = {"op": "convert", "dequantize": True}
CLASSES = {"fp8": "LlamaForCausalLM", "mxfp4": "GptOssForCausalLM"}


@pytest.fixture(scope="module")
def bases(sources, tmp_path_factory):
    """The packed checkpoint of each format, an adapter for it, and what convert makes of it: made once, only to be read."""
    from support.tiny import build

    made = {}

    def base(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            plain = sources("llama", "bfloat16") if kind == "fp8" else root / "plain"
            if kind == "mxfp4":
                build(CLASSES[kind], plain, dtype="bfloat16")
            packed = quantized(plain, root / "packed", kind)
            modules = ["q_proj", "down_proj"] if kind == "fp8" else ["q_proj", "v_proj"]
            _, adapter = make_adapter(root, CLASSES[kind], base=plain, target_modules=modules, task_type="CAUSAL_LM")
            unpacked, report = applied(packed, root / "convert", CONVERT)
            made[kind] = {"plain": plain, "packed": packed, "adapter": adapter, "unpacked": unpacked, "report": report}
        return made[kind]

    return base


def merge(base, **fields):
    return {"op": "merge_adapter", "adapter": str(base["adapter"]), "base": "accept", **fields}


def tensors_of(place):
    return load_file(place / "model.safetensors")


def altered(base, place, tensors=None, **said):
    """A copy of the packed checkpoint with other tensors, and fields of its quantization config."""
    shutil.copytree(base["packed"], place)
    if tensors is not None:
        save_file({name: value.contiguous() for name, value in tensors.items()}, place / "model.safetensors")
    config = config_of(place)
    config["quantization_config"] |= said
    (place / "config.json").write_text(json.dumps(config))
    return place


# ---- convert ----


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_written_is_plain_and_what_transformers_makes_of_the_source(bases, kind):
    base = bases(kind)
    assert "quantization_config" not in config_of(base["unpacked"])
    new = tensors_of(base["unpacked"])
    assert new.keys() == tensors_of(base["plain"]).keys()
    assert {value.dtype for value in new.values()} == {torch.bfloat16}
    (theirs, _), (ours, info) = load(base["packed"]), load(base["unpacked"])
    assert not any(info.values())
    assert all(value.equal(ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    report = base["report"]
    assert report["verdict"].startswith(
        "verified (rounded): each weight that was quantized is what its codes and scales say"
    )
    assert report["promise"]["measured"] == "bitwise"
    assert report["checks"]["dequantized"]["weights"] == (14 if kind == "fp8" else 4)
    assert (report["checks"]["dequantized"]["exact"] == 1) == (kind == "mxfp4")


def test_it_is_within_half_a_step_of_fp8_of_what_was_packed(bases):
    """Not the packers' own scales alone: beside the weights that were there before."""
    base = bases("fp8")
    old, new = tensors_of(base["plain"]), tensors_of(base["unpacked"])
    changed = [name for name in old if not old[name].equal(new[name])]
    assert len(changed) == 14
    assert all((old[n].float() - new[n].float()).norm() < 2**-4 * old[n].float().norm() for n in changed)


def test_what_follows_works_on_plain_weights(bases, tmp_path):
    cut = {"op": "drop_blocks", "blocks": [1]}
    report = graftkit.apply(
        recipe(
            bases("fp8")["packed"], tmp_path / "out", CONVERT, {"op": "extend_vocab", "special_tokens": ["<|a|>"]}, cut
        )
    )
    assert report.plan.result.config["num_hidden_layers"] == 1
    new, unpacked = tensors_of(tmp_path / "out"), tensors_of(bases("fp8")["unpacked"])
    assert all(new[name].equal(unpacked[name]) for name in new if ".layers.0." in name)


def test_experts_that_lie_one_by_one_and_shards(sources, tmp_path):
    base = quantized(sources("mixtral", "bfloat16"), tmp_path / "base", "fp8")
    whole = tensors_of(base)
    names = list(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: whole[name] for name in held}, base / file, {"format": "pt"})
    (base / "model.safetensors").unlink()
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    output, report = applied(base, tmp_path / "run", CONVERT)
    assert report["promise"]["measured"] == "bitwise"
    (theirs, _), (ours, info) = load(base), load(output)
    assert not any(info.values())
    assert all(value.equal(ours.state_dict()[name]) for name, value in theirs.state_dict().items())


def test_one_scale_for_a_matrix_and_scales_of_activations(bases, tmp_path):
    whole = {}
    for name, value in tensors_of(bases("fp8")["plain"]).items():
        packed = fp8(name, value, tuple(value.shape)) if name.endswith("proj.weight") else {name: value}
        whole |= {key: one.reshape(()) if key.endswith("scale_inv") else one for key, one in packed.items()}
        if len(packed) > 1:
            whole[name.replace(".weight", ".activation_scale")] = torch.tensor(1.0)
    base = altered(bases("fp8"), tmp_path / "base", whole, weight_block_size=None, activation_scheme="static")
    plan = graftkit.plan(recipe(base, tmp_path / "out", CONVERT))
    assert plan.result.tensors.keys() == tensors_of(bases("fp8")["plain"]).keys()
    assert graftkit.apply(recipe(base, tmp_path / "out", CONVERT)).verdict.startswith("verified (rounded)")


# ---- merge_adapter ----


@pytest.mark.parametrize("kind", CLASSES)
def test_a_merge_is_that_into_what_convert_makes(bases, kind, tmp_path):
    base = bases(kind)
    both = [merge(base, dequantize=True)], [merge(base)]
    for name, source, operations in zip("ab", (base["packed"], base["unpacked"]), both, strict=True):
        report = graftkit.apply(recipe(source, tmp_path / name, *operations))
    first, second = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    assert "quantization_config" not in config_of(tmp_path / "a")
    changed = [name for name in first if not first[name].equal(tensors_of(base["unpacked"])[name])]
    assert len(changed) == 4
    report = json.loads((tmp_path / "a/graft_report.json").read_text())
    assert {"dequantized", "merged against adapted"} <= report["checks"].keys()
    assert "rounded once to its new dtype" in report["verdict"]


def test_it_keeps_more_of_the_update_in_float32(bases, tmp_path):
    base = bases("fp8")
    report = graftkit.apply(recipe(base["packed"], tmp_path / "out", merge(base, dequantize=True, dtype="float32")))
    kept = next(check for check in report.checks if check.name == "merged against adapted").kept
    assert kept == pytest.approx(1, abs=1e-3)
    assert {value.dtype for value in tensors_of(tmp_path / "out").values()} == {torch.float32}
    assert config_of(tmp_path / "out")["dtype"] == "float32"


def test_the_recipe_of_the_repository_runs_by_the_command(bases, tmp_path):
    base = bases("fp8")
    done = real(
        "apply", "recipes/merge_dequantized.yaml", f"base_model={base['packed']}",
        f"operations.0.adapter={base['adapter']}", "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "14 weights, 18,432 values: the nearest of BF16" in " ".join(done.stdout.split())
    model, info = load(tmp_path / "out")
    assert not any(info.values())
    assert model.dtype == torch.bfloat16


# ---- what is refused ----


def test_a_quantized_base_is_refused_with_the_way_out(bases, sources, tmp_path):
    base = bases("fp8")
    with pytest.raises(InputRejected, match="merge_adapter needs plain weights: .* or add dequantize: true to it$"):
        graftkit.plan(recipe(base["packed"], tmp_path / "out", merge(base)))
    with pytest.raises(
        InputRejected, match=r"drop_blocks needs plain.* or begin with \{op: convert, dequantize: true\}$"
    ):
        graftkit.plan(recipe(base["packed"], tmp_path / "out", {"op": "drop_blocks", "blocks": [1]}))
    gptq = quantized(sources("llama", "bfloat16"), tmp_path / "gptq", "gptq")
    with pytest.raises(InputRejected, match="merge_adapter needs plain weights: give the checkpoint .* from$"):
        graftkit.plan(recipe(gptq, tmp_path / "out", merge(base)))
    for operation in (merge(base, dequantize=True), CONVERT):
        with pytest.raises(InputRejected, match="is quantized by gptq; what is dequantized is: fp8, mxfp4, nvfp4"):
            graftkit.plan(recipe(gptq, tmp_path / "out", operation))
    with pytest.raises(RecipeError, match=r"operations\.0\.dequantize: the base is not quantized"):
        graftkit.plan(recipe(base["plain"], tmp_path / "out", merge(base, dequantize=True)))
    with pytest.raises(RecipeError, match="quantized weights are unpacked with dequantize: true"):
        graftkit.plan(recipe(base["packed"], tmp_path / "out", {"op": "convert"}))
    other = {"op": "extract_lora", "fine_tuned": str(base["packed"]), "r": 2}
    with pytest.raises(
        InputRejected, match=r"extract_lora needs plain.* or dequantize it first \(\{op: convert, dequantize: true\}\)$"
    ):
        graftkit.plan(recipe(base["plain"], tmp_path / "out", other))
    assert_one_line(here("selftest", base["packed"]), 3, "selftest needs plain weights")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe(base["packed"], tmp_path / "out", merge(base))))
    assert_one_line(here("apply", tmp_path / "recipe.json"), 3, "add dequantize: true to it")


def wrong_shape(whole, name):
    return {**whole, f"{name}_scale_inv": whole[f"{name}_scale_inv"][:1]}


def integers(whole, name):
    return {**whole, f"{name}_scale_inv": whole[f"{name}_scale_inv"].to(torch.int32)}


def no_scale(whole, name):
    scale = whole[f"{name}_scale_inv"]
    return {**{key: value for key, value in whole.items() if key != f"{name}_scale_inv"}, f"{name}_scale": scale}


def beside(whole, name):
    return {**whole, f"{name}_zero_point": whole[f"{name}_scale_inv"].clone()}


@pytest.mark.parametrize(
    ("change", "said", "words"),
    [
        (wrong_shape, {}, r"has scales of shape \[1, 2\]; blocks of 16 x 16 want \[2, 2\]"),
        (integers, {}, "its scales are I32, and config.json does not say how these are read"),
        (no_scale, {}, "is F8_E4M3 without a model.layers.0.self_attn.q_proj.weight_scale_inv"),
        (beside, {}, "q_proj.weight_zero_point: not a part of weights that are stored as fp8"),
        (None, {"weight_block_size": [16]}, r"weight_block_size: expected two sizes, found '?\[16\]"),
        (None, {"weight_block_size": None}, "weight_block_size: expected two sizes, found"),
    ],
)
def test_packed_weights_that_are_not_what_the_format_says(bases, change, said, words, tmp_path):
    whole = tensors_of(bases("fp8")["packed"])
    tensors = change(whole, "model.layers.0.self_attn.q_proj.weight") if change else None
    base = altered(bases("fp8"), tmp_path / "base", tensors, **said)
    with pytest.raises(InputRejected, match=words):
        graftkit.plan(recipe(base, tmp_path / "out", CONVERT))


@pytest.mark.parametrize("cut", ["blocks", "scales"])
def test_experts_that_are_not_what_the_format_says(bases, cut, tmp_path):
    whole = tensors_of(bases("mxfp4")["packed"])
    name = f"model.layers.0.mlp.experts.down_proj_{cut}"
    base = altered(bases("mxfp4"), tmp_path / "base", {**whole, name: whole[name][:, :-1]})
    with pytest.raises(InputRejected, match="has no model.layers.0.mlp.experts.down_proj_scales of bytes"):
        graftkit.plan(recipe(base, tmp_path / "out", CONVERT))
    both = {f"model.layers.0.mlp.experts.down_proj_{part}": 1 for part in ("blocks", "scales")}
    short = {key: value[:, :-1] if key in both else value for key, value in whole.items()}
    with pytest.raises(InputRejected, match=r"does not unpack to 'model.layers.0.mlp.experts.down_proj' of the class"):
        graftkit.plan(recipe(altered(bases("mxfp4"), tmp_path / "short", short), tmp_path / "out", CONVERT))


# ---- planted faults ----


@pytest.fixture(scope="module")
def looked_at(bases):
    """The check of each format, with the tensors and the config that passes it."""

    def look(kind):
        before = Checkpoint.open(bases(kind)["packed"])
        after = dequantize(before, "BF16").checkpoint
        written = Checkpoint.open(bases(kind)["unpacked"])
        check = DequantizedCheck(before, after)
        assert check.compare(written.tensors, written.config).failures == ()
        return check, written

    return look


def scaled_by(matrix, codes, scales, size=16):
    """The codes of a matrix times these scales of its blocks."""
    rows, columns = (torch.arange(count) // size for count in matrix.shape)
    return (codes.float() * scales[rows][:, columns]).bfloat16()


def off_by_a_row(values, codes, scales):
    return scaled_by(values, codes, scales.roll(1, 0))


def twice(values, codes, scales):
    rows, columns = (torch.arange(count) // 16 for count in values.shape)
    return (codes.float() * scales[rows][:, columns].square()).bfloat16()


def transposed(values, codes, scales):
    del codes, scales
    changed = values.clone()
    changed[:16, :16] = values[:16, :16].T
    return changed


def blocks_in_columns(values, codes, scales):
    return scaled_by(values, codes, scales.T)


def unscaled(values, codes, scales):
    del values, scales
    return codes.bfloat16()


def an_ulp(values, codes, scales):
    del codes, scales
    changed = values.clone()
    changed.view(torch.int16)[3, 5] += 1
    return changed


def passed_as_plain(values, codes, scales):
    del values, scales
    return codes


def stale(place, like, tensors, **config):
    """A written checkpoint with other tensors, or values of its config."""
    shutil.copytree(like, place)
    save_file({name: value.contiguous() for name, value in tensors.items()}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({**config_of(like), **config}))
    return Checkpoint.open(place)


@pytest.mark.parametrize(
    "fault", [off_by_a_row, twice, transposed, blocks_in_columns, unscaled, an_ulp, passed_as_plain]
)
def test_a_planted_fault_in_a_matrix_is_caught(bases, looked_at, fault, tmp_path):
    check, written = looked_at("fp8")
    name = "model.layers.1.self_attn.q_proj.weight"
    packed, whole = tensors_of(bases("fp8")["packed"]), tensors_of(bases("fp8")["unpacked"])
    wrong = fault(whole[name], packed[name], packed[f"{name}_scale_inv"])
    found = stale(tmp_path / "wrong", written.directory, {**whole, name: wrong})
    failures = check.compare(found.tensors, found.config).failures
    assert len(failures) == 1
    assert name in failures[0]


def swapped_nibbles(experts):
    pairs = experts.unflatten(1, (-1, 2)).flip(2)
    return pairs.flatten(1, 2)


@pytest.mark.parametrize("fault", [swapped_nibbles, lambda experts: experts * 2, lambda experts: experts.roll(32, 1)])
def test_a_planted_fault_in_experts_is_caught(bases, looked_at, fault, tmp_path):
    check, written = looked_at("mxfp4")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    whole = tensors_of(bases("mxfp4")["unpacked"])
    found = stale(tmp_path / "wrong", written.directory, {**whole, name: fault(whole[name])})
    (failure,) = check.compare(found.tensors, found.config).failures
    assert f"'{name}' is not what its codes and scales say" in failure


def test_what_is_left_of_a_quantizer_is_caught(bases, looked_at, tmp_path):
    check, written = looked_at("fp8")
    said = config_of(bases("fp8")["packed"])["quantization_config"]
    scale = "model.layers.0.self_attn.q_proj.weight_scale_inv"
    left = {**tensors_of(bases("fp8")["unpacked"]), scale: tensors_of(bases("fp8")["packed"])[scale]}
    found = stale(tmp_path / "left", written.directory, left, quantization_config=said)
    first, second = check.compare(found.tensors, found.config).failures
    assert "config.json still has a quantization_config" in first
    assert f"{scale}: left of packed weights" in second
    missing = {name: tensor for name, tensor in written.tensors.items() if "q_proj" not in name}
    assert "q_proj.weight' is missing" in check.compare(missing, written.config).failures[0]


def test_a_dequantizer_that_is_wrong_writes_nothing(bases, tmp_path, monkeypatch):
    """Planted in the code itself: the scales of each block times themselves."""
    from graftkit.checkpoint import unpacked

    right = unpacked._factors
    monkeypatch.setattr(unpacked, "_factors", lambda stored, dtype: right(stored, dtype) ** 2)
    for operation in (CONVERT, merge(bases("fp8"), dequantize=True)):
        with pytest.raises(VerificationFailed, match="dequantized: .* is not what its codes and scales say"):
            graftkit.apply(recipe(bases("fp8")["packed"], tmp_path / "out", operation, verify={"outputs": False}))
        assert not (tmp_path / "out").exists()
