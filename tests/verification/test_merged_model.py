"""Faults planted into merged checkpoints: each is caught by the comparison with what peft loads, unmerged."""

import shutil

import pytest
from support.adapters import make_adapter, merged_by_peft

from graftkit.verification.adapters.merged_model import compare_with_adapted

LLAMA = "LlamaForCausalLM"
#: One of the adapted weights; it is square.
TARGET = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def merged(tmp_path_factory, request):
    """A base in one dtype with a small adapter, whose effect lies near the rounding of bfloat16, merged by peft."""
    directory = tmp_path_factory.mktemp("merged")
    source, adapter = make_adapter(
        directory, LLAMA, dtype=request.param, scale=0.02, target_modules=["q_proj", "down_proj"]
    )
    return source, adapter, merged_by_peft(source, adapter, LLAMA)


def written(merged, directory, change=lambda weight, base: weight):
    """The merged checkpoint with ``change`` applied to one weight, given the base's."""
    from safetensors.torch import load_file, save_file

    source, adapter, tensors = merged
    result = shutil.copytree(source, directory / "result")
    base = load_file(source / "model.safetensors")
    tensors = {name: tensors[name].clone() for name in base}
    tensors[TARGET] = change(tensors[TARGET], base[TARGET]).contiguous()
    save_file(tensors, result / "model.safetensors", {"format": "pt"})
    return compare_with_adapted(source, result, adapter)


def test_a_right_merge_passes_with_its_figures(merged, tmp_path):
    report = written(merged, tmp_path)
    assert report.failures == ()
    assert len(report.weights) == 4
    assert min(weight.equal for weight in report.weights) > 0.5
    assert 0.5 < report.kept < 1.01
    assert report.outputs
    assert report.to_json()["outputs"][0]["ratio"] <= 2
    assert [row[1] for row in report.rows() if row[0] != f"update kept by {report.dtype}"] == ["rounded", "rounded"]


FAULTS = {
    "dropped": lambda weight, base: base,
    "scaled twice": lambda weight, base: weight + (weight - base),
    "a tenth too little": lambda weight, base: base + (0.9 * (weight.double() - base.double())).to(base.dtype),
    "wrong sign": lambda weight, base: base - (weight - base),
    "transposed": lambda weight, base: base + (weight - base).T,
    "another module's": lambda weight, base: base.flip(0),
    "two rows swapped": lambda weight, base: weight[[1, 0, *range(2, len(weight))]],
    "rounded twice": lambda weight, base: weight.half().to(weight.dtype) if weight.dtype.itemsize == 4 else base,
}


@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_caught_by_name(merged, tmp_path, change):
    report = written(merged, tmp_path, change)
    assert any(TARGET in failure for failure in report.failures)
    assert [row[1] for row in report.rows() if not row[0].startswith("update kept")] == ["failed", "failed"]


def test_an_update_that_bfloat16_mostly_rounds_away_is_right_and_its_share_is_told(tmp_path):
    """What training for a few steps at a small rate leaves: most values move by less than half a unit in the last place."""
    source, adapter = make_adapter(tmp_path, LLAMA, dtype="bfloat16", scale=2e-4, target_modules="all-linear")
    small = source, adapter, merged_by_peft(source, adapter, LLAMA)
    report = written(small, tmp_path)
    assert report.failures == ()
    assert report.kept < 0.9
    row = next(row for row in report.rows() if row[0] == "update kept by bfloat16")
    assert row[1] == f"{report.kept:.0%}"
    assert "dtype: float32" in row[2]


def test_one_value_that_is_one_rounding_off_is_caught(merged, tmp_path):
    def nudge(weight, base):
        import torch

        words = weight.view(torch.int16 if weight.dtype.itemsize == 2 else torch.int32)
        words[3, 5] += 1 if weight.dtype.itemsize == 2 else 64  # float32 sums may round a few units off
        return weight

    report = written(merged, tmp_path, nudge)
    assert f"weights: {TARGET!r} is not base plus adapter, rounded once, at 1 of" in report.failures[0]


def test_a_bias_that_the_adapter_trained_and_the_merge_lost_is_caught(tmp_path):
    from safetensors.torch import load_file, save_file

    config = {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}
    source, adapter = make_adapter(tmp_path, "GPT2LMHeadModel", **config)
    tensors = merged_by_peft(source, adapter, "GPT2LMHeadModel")
    base = load_file(source / "model.safetensors")
    result = shutil.copytree(source, tmp_path / "result")
    right = {name: tensors[name if name in tensors else f"transformer.{name}"].clone() for name in base}
    lost = next(name for name in base if name.endswith("h.0.ln_1.bias"))
    save_file(right, result / "model.safetensors", {"format": "pt"})
    assert compare_with_adapted(source, result, adapter).failures == ()
    save_file({**right, lost: base[lost]}, result / "model.safetensors", {"format": "pt"})
    assert "h.0.ln_1.bias' is not that of base and adapter" in compare_with_adapted(source, result, adapter).failures[0]


def test_a_merged_model_that_gives_nan_fails(merged, tmp_path):
    report = written(merged, tmp_path, lambda weight, base: weight * float("nan"))
    assert any("holds NaN" in failure for failure in report.failures)


def test_a_head_or_row_that_is_not_the_adapters_is_caught(tmp_path):
    from safetensors.torch import load_file, save_file

    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "trainable_token_indices": [4]}
    source, adapter = make_adapter(tmp_path, LLAMA, **config)
    tensors = merged_by_peft(source, adapter, LLAMA)
    result = shutil.copytree(source, tmp_path / "result")
    for name, row in (("lm_head.weight", 0), ("model.embed_tokens.weight", 4)):
        wrong = {key: value.clone() for key, value in tensors.items()}
        wrong[name][row] += 1e-6
        save_file({key: wrong[key] for key in load_file(source / "model.safetensors")}, result / "model.safetensors")
        report = compare_with_adapted(source, result, adapter)
        assert f"weights: {name!r} is not the adapter's" in report.failures


def test_outputs_alone_show_a_fault_where_weights_are_not_compared(merged, tmp_path, monkeypatch):
    monkeypatch.setattr("graftkit.verification.adapters.merged_weights.MODULE_BYTES", 0)
    report = written(merged, tmp_path, lambda weight, base: 2 * weight)
    assert len(report.skipped) == 4
    assert "noise ratio" in report.failures[0]
