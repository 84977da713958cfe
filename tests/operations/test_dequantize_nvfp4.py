"""NVFP4 weights unpacked, as compressed-tensors and as modelopt write them, beside a sum of Python's own for each value."""

import json
import shutil
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import make_adapter
from support.command import assert_one_line, here
from support.quantized import E2M1, quantized
from support.recipes import applied, config_of, load, recipe
from support.tiny import build

import graftkit
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.unpacked import paired
from graftkit.errors import InputRejected
from graftkit.operations.weights.dequantize import dequantize
from graftkit.verification.weights.dequantized import DequantizedCheck

CONVERT = {"op": "convert", "dequantize": True}
NAME = "model.layers.0.self_attn.q_proj.weight"
WHOLE = {"nvfp4": "_global_scale", "modelopt": "_scale_2"}


@pytest.fixture(scope="module", params=WHOLE)
def base(request, sources, tmp_path_factory):
    """A packed checkpoint of each layout, and what convert makes of it: only to be read."""
    root = tmp_path_factory.mktemp(request.param)
    packed = quantized(sources("llama", "bfloat16"), root / "packed", request.param)
    (packed / "hf_quant_config.json").write_text("{}")
    unpacked, report = applied(packed, root / "convert", CONVERT)
    plain = sources("llama", "bfloat16")
    return {"kind": request.param, "plain": plain, "packed": packed, "unpacked": unpacked, "report": report}


def tensors_of(place):
    return load_file(place / "model.safetensors")


def altered(base, place, **changed):
    """A copy of the packed checkpoint with other tensors beside :data:`NAME`, by what follows that; None takes one away."""
    shutil.copytree(base["packed"], place)
    held = {**tensors_of(place), **{f"{NAME}{key}": value for key, value in changed.items()}}
    save_file({name: value for name, value in held.items() if value is not None}, place / "model.safetensors")
    return place


def parts_of(base, tensors):
    codes = f"{NAME}_packed" if base["kind"] == "nvfp4" else NAME
    return [tensors[name] for name in (codes, f"{NAME}_scale", f"{NAME}{WHOLE[base['kind']]}")]


def exact(base, codes, scales, whole, row, column):
    """One value as a fraction."""
    code = int(codes[row, column // 2]) >> 4 * (column % 2) & 15
    factor = Fraction(whole.item()) if base["kind"] == "modelopt" else 1 / Fraction(whole.item())
    return Fraction(E2M1[code].item()) * Fraction(scales[row, column // 16].float().item()) * factor


def test_every_value_is_the_nearest_to_the_fraction_that_its_codes_and_scales_say(base):
    new, packed = tensors_of(base["unpacked"]), tensors_of(base["packed"])
    parts, values = parts_of(base, packed), new[NAME]
    step = torch.tensor(1, dtype=torch.int16)
    for row in range(0, values.shape[0], 7):
        for column in range(values.shape[1]):
            wanted, found = exact(base, *parts, row, column), values[row, column]
            gap = abs(Fraction(found.item()) - wanted)
            around = [(found.view(torch.int16) + one).view(torch.bfloat16) for one in (step, -step)]
            beside = [abs(Fraction(value.item()) - wanted) for value in around if value.isfinite()]
            assert all(gap <= other for other in beside), (row, column)


def test_what_is_written_is_plain_and_near_to_what_was_packed(base):
    old, new = tensors_of(base["plain"]), tensors_of(base["unpacked"])
    assert {value.dtype for value in new.values()} == {torch.bfloat16}
    assert new.keys() == old.keys()
    changed = [name for name in old if not old[name].equal(new[name])]
    assert len(changed) == 14
    assert all((old[n].float() - new[n].float()).norm() < 2**-3 * old[n].float().norm() for n in changed)
    _, info = load(base["unpacked"])
    assert not any(info.values())
    assert "quantization_config" not in config_of(base["unpacked"])
    assert not (base["unpacked"] / "hf_quant_config.json").exists()
    assert base["report"]["checks"]["dequantized"]["weights"] == 14
    assert "outputs were not compared" in base["report"]["verdict"]


def test_a_merge_is_that_into_what_convert_makes(base, tmp_path):
    _, adapter = make_adapter(
        tmp_path, "LlamaForCausalLM", base=base["plain"], target_modules=["q_proj"], task_type="CAUSAL_LM"
    )
    merge = {"op": "merge_adapter", "adapter": str(adapter), "base": "accept"}
    graftkit.apply(recipe(base["packed"], tmp_path / "a", {**merge, "dequantize": True}))
    graftkit.apply(recipe(base["unpacked"], tmp_path / "b", merge))
    first, second = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert all(first[name].equal(second[name]) for name in second)
    assert not first[NAME].equal(tensors_of(base["unpacked"])[NAME])


def test_experts_that_lie_one_by_one(sources, tmp_path):
    packed = quantized(sources("mixtral", "bfloat16"), tmp_path / "packed", "nvfp4")
    output, _ = applied(packed, tmp_path / "run", CONVERT)
    assert tensors_of(output).keys() == tensors_of(sources("mixtral", "bfloat16")).keys()


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """A checkpoint of gpt-oss with fused experts as modelopt packs them, plain, packed and converted: only to be read."""
    root = tmp_path_factory.mktemp("fused")
    plain = root / "plain"
    build("GptOssForCausalLM", plain, dtype="bfloat16")
    packed = quantized(plain, root / "packed", "modelopt")
    unpacked, _ = applied(packed, root / "convert", CONVERT)
    return {"plain": plain, "packed": packed, "unpacked": unpacked}


EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"


def test_each_of_the_fused_experts_is_what_its_matrix_alone_would_be(fused):
    old, new, packed = (tensors_of(fused[one]) for one in ("plain", "unpacked", "packed"))
    assert new.keys() == old.keys()
    assert packed[EXPERTS].shape[1] * 2 == new[EXPERTS].shape[1]
    codes, scales = packed[EXPERTS], packed[f"{EXPERTS}_weight_scale"]
    for expert, found in enumerate(new[EXPERTS]):
        alone = _unpack("modelopt", codes[expert].T, scales[expert].T, packed[f"{EXPERTS}_weight_scale_2"])
        assert found.T.equal(alone)
    assert (new[EXPERTS].float() - old[EXPERTS].float()).norm() < 2**-3 * old[EXPERTS].float().norm()
    _, info = load(fused["unpacked"])
    assert not any(info.values())


def test_planted_faults_in_fused_experts_are_caught(fused, tmp_path):
    before = Checkpoint.open(fused["packed"])
    check = DequantizedCheck(before, dequantize(before, "BF16").checkpoint)
    written = Checkpoint.open(fused["unpacked"])
    assert check.compare(written.tensors, written.config).failures == ()
    right = tensors_of(fused["unpacked"])[EXPERTS]
    wrong = {
        "the next expert": right.roll(1, 0),
        "pairs swapped": right.unflatten(1, (-1, 2)).flip(2).flatten(1, 2),
        "another group": right.roll(16, 1),
        "the next output": right.roll(1, 2),
    }
    for value in wrong.values():
        save_file({EXPERTS: value.contiguous()}, tmp_path / "wrong.safetensors")
        found = {**written.tensors, **read_header(tmp_path / "wrong.safetensors").tensors}
        (failure,) = check.compare(found, written.config).failures
        assert f"'{EXPERTS}' is not what its codes and scales say" in failure
    left = {**written.tensors, f"{EXPERTS}_weight_scale": before.tensors[f"{EXPERTS}_weight_scale"]}
    (failure,) = check.compare(left, written.config).failures
    assert "left of packed weights" in failure


def test_experts_that_are_packed_along_their_outputs_are_refused(fused, tmp_path):
    """No program writes them so, and which axis has the pairs must not be a guess."""
    held = tensors_of(fused["packed"])
    for name in (EXPERTS, f"{EXPERTS}_weight_scale"):
        held[name] = held[name].transpose(1, 2).contiguous()
    shutil.copytree(fused["packed"], tmp_path / "other")
    save_file(held, tmp_path / "other" / "model.safetensors")
    with pytest.raises(InputRejected, match="groups of 16 want F8_E4M3 and"):
        graftkit.plan(recipe(tmp_path / "other", tmp_path / "out", CONVERT))


FAULTS = {
    "multiplied": lambda base, c, s, w: _unpack("modelopt" if base["kind"] == "nvfp4" else "nvfp4", c, s, w),
    "no scale of the matrix": lambda base, c, s, w: _unpack(base["kind"], c, s, torch.ones(1)),
    "halves swapped": lambda base, c, s, w: _unpack(base["kind"], c >> 4 | c << 4, s, w),
    "another group": lambda base, c, s, w: _unpack(base["kind"], c, s.view(torch.uint8).roll(1, -1).view(s.dtype), w),
    "twice": lambda base, c, s, w: _unpack(base["kind"], c, (s.float() * 2).to(s.dtype), w),
}  # fmt: skip


def _unpack(kind, codes, scales, whole):
    values = torch.stack((E2M1[codes.long() & 15], E2M1[codes.long() >> 4]), -1).flatten(-2).double()
    values = values * scales.double().repeat_interleave(16, -1)
    return (values * whole.double() if kind == "modelopt" else values / whole.double()).bfloat16()


def test_planted_faults_are_caught(base, tmp_path):
    before = Checkpoint.open(base["packed"])
    check = DequantizedCheck(before, dequantize(before, "BF16").checkpoint)
    written = Checkpoint.open(base["unpacked"])
    assert check.compare(written.tensors, written.config).failures == ()
    packed = tensors_of(base["packed"])
    for fault in FAULTS.values():
        save_file({NAME: fault(base, *parts_of(base, packed))}, tmp_path / "wrong.safetensors")
        found = {**written.tensors, **read_header(tmp_path / "wrong.safetensors").tensors}
        (failure,) = check.compare(found, written.config).failures
        assert f"'{NAME}' is not what its codes and scales say" in failure
    left = {**written.tensors, f"{NAME}_scale": before.tensors[f"{NAME}_scale"]}
    (failure,) = check.compare(left, written.config).failures
    assert "left of packed weights" in failure


def test_a_scale_that_is_no_number_is_the_inputs_fault(base, tmp_path):
    """Also under bytes that say so in FP8 codes alone, where no tensor of floating point holds NaN."""
    scales = parts_of(base, tensors_of(base["packed"]))[1].clone()
    scales.view(torch.uint8)[3, 1] = 0x7F
    packed = altered(base, tmp_path / "nan", _scale=scales)
    for allow in (False, True):
        fields = {"verify": {"outputs": False}, "allow_nonfinite": allow}
        (tmp_path / "recipe.json").write_text(json.dumps(recipe(packed, tmp_path / "out", CONVERT, **fields)))
        assert_one_line(
            here("apply", tmp_path / "recipe.json", "-q"), 3, f"'{NAME}': its codes and scales say NaN or infinity"
        )
        assert not (tmp_path / "out").exists()


def test_packed_weights_that_are_not_what_the_format_says(base, tmp_path):
    codes, scales, whole = parts_of(base, tensors_of(base["packed"]))
    kind = base["kind"]
    key = "_packed" if kind == "nvfp4" else ""
    wrong = [
        ({"_scale": None}, f"has no {NAME}_scale"),
        ({"_scale": scales[:, :1].clone()}, "groups of 16 want F8_E4M3 and"),
        ({"_scale": scales.float()}, "has scales of F32"),
        ({WHOLE[kind]: torch.ones(2)}, "the scale of the whole weight is not one value in float32"),
        ({key: codes[:4].clone(), "_scale": scales[:4].clone()}, f"does not unpack to '{NAME}' of the class"),
        ({"_zero_point": whole.clone()}, "_zero_point: not a part of weights that are stored as nvfp4"),
    ]
    for place, (changed, words) in enumerate(wrong):
        with pytest.raises(InputRejected, match=words):
            graftkit.plan(recipe(altered(base, tmp_path / str(place), **changed), tmp_path / "out", CONVERT))


def test_other_formats_of_the_same_method_are_refused_by_name(base, tmp_path):
    for said, words in (
        (
            {"format": "pack-quantized"},
            r"is quantized by compressed-tensors \(pack-quantized\); what is dequantized is",
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, r"is quantized by modelopt \(FP8\)"),
    ):
        place = tmp_path / said.get("quant_algo", "ct")
        shutil.copytree(base["packed"], place)
        config = config_of(place)
        config["quantization_config"] = {"quant_method": "compressed-tensors", **said}
        (place / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputRejected, match=words):
            graftkit.plan(recipe(place, tmp_path / "out", CONVERT))


@pytest.mark.numerical
def test_every_code_is_what_compressed_tensors_makes_of_it(tmp_path):
    """With its library at hand, which graftkit does not need."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import NVFP4PackedCompressor
    from compressed_tensors.quantization import preset_name_to_scheme

    codes = torch.arange(256, dtype=torch.uint8).view(1, 256).repeat(64, 1)
    drawn = torch.randint(0, 0x7F, (64, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    scales, whole = drawn.view(torch.float8_e4m3fn), torch.tensor([1234.5678])
    save_file({"codes": codes, "scales": scales, "whole": whole}, tmp_path / "packed.safetensors")
    held = read_header(tmp_path / "packed.safetensors").tensors
    ours = read_tensor(paired(held["codes"], held["scales"], held["whole"], "BF16", divided=True))
    state = {"weight_packed": codes, "weight_scale": scales, "weight_global_scale": whole}
    theirs = NVFP4PackedCompressor.decompress(state, preset_name_to_scheme("NVFP4", ["Linear"]))["weight"]
    assert ours.equal(theirs)
