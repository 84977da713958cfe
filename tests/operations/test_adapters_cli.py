"""Merge an adapter, take the difference out again, and give it another rank: the real command line, one after another."""

import json
import subprocess
import sys

from support.adapters import make_adapter

LLAMA = "LlamaForCausalLM"


def apply(directory, name, base, **operation):
    recipe = {"version": 1, "base_model": str(base), "operations": [operation], "output": str(directory / name)}
    path = directory / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "graftkit", "apply", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_an_adapter_goes_into_the_base_and_comes_out_again(tmp_path):
    base, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    merged = apply(tmp_path, "merged", base, op="merge_adapter", adapter=str(adapter))
    assert merged.returncode == 0, merged.stderr
    assert "outputs beside peft" in merged.stdout
    extracted = apply(tmp_path, "extracted", base, op="extract_lora", fine_tuned=str(tmp_path / "merged"), r=4)
    assert extracted.returncode == 0, extracted.stderr
    report = json.loads((tmp_path / "extracted/graft_report.json").read_text())
    check = report["checks"]["extracted adapter against fine-tuned"]
    assert max(check["lost"].values()) < 1e-9
    again = str(tmp_path / "extracted/adapter")
    resized = apply(tmp_path, "resized", base, op="resize_adapter", adapter=again, r=8)
    assert resized.returncode == 0, resized.stderr
    assert "adapter's products" in resized.stdout
    assert not (tmp_path / "resized/model.safetensors").exists()


def test_a_wrong_adapter_ends_with_one_line_and_no_output(tmp_path):
    base, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj"])
    (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    done = apply(tmp_path, "out", base, op="merge_adapter", adapter=str(adapter))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "adapter_model.safetensors: " in done.stderr
    assert not (tmp_path / "out").exists()
