"""Merge an adapter, take the difference out again, and give it another rank: the command line, one after another."""

import json

from support.adapters import make_adapter
from support.command import here, real

LLAMA = "LlamaForCausalLM"


def apply(directory, name, base, **operation):
    recipe = {"version": 1, "base_model": str(base), "operations": [operation], "output": str(directory / name)}
    path = directory / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return real("apply", path)


def run_recipe(name, output, *overrides):
    done = here("apply", f"recipes/{name}.yaml", *overrides, "--output", output)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((output / "graft_report.json").read_text())


def test_a_trained_adapter_goes_through_the_recipes_that_merge_extract_and_resize(demo, tmp_path):
    _, adapter = make_adapter(
        tmp_path, LLAMA, base=demo, r=16, scale=0.02, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    printed, _ = run_recipe("merge", tmp_path / "merged", f"operations.0.adapter={adapter}")
    assert "outputs beside peft" in printed
    _, report = run_recipe("extract", tmp_path / "extracted", f"operations.0.fine_tuned={tmp_path / 'merged'}")
    lost = report["checks"]["extracted adapter against fine-tuned"]["lost"]
    assert len(lost) == 6
    assert max(lost.values()) < 0.05
    again = tmp_path / "extracted/adapter"
    printed, _ = run_recipe("resize", tmp_path / "resized", f"operations.0.adapter={again}")
    assert "adapter's products" in printed
    assert not (tmp_path / "resized/model.safetensors").exists()
    printed, report = run_recipe("retarget_adapter", tmp_path / "retargeted", f"operations.0.adapter={adapter}")
    assert "beside LlamaForCausalLM" in printed
    assert report["checks"]["retargeted against old adapter"]["outputs"]["changed"] == 0
    assert json.loads((tmp_path / "resized/adapter/adapter_config.json").read_text())["r"] == 8


def test_a_wrong_adapter_ends_with_one_line_and_no_output(tmp_path):
    base, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj"])
    (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    done = apply(tmp_path, "out", base, op="merge_adapter", adapter=str(adapter))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "adapter_model.safetensors: " in done.stderr
    assert not (tmp_path / "out").exists()
