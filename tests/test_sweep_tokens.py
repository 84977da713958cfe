"""The sweep of rename_tokens, reinit_rows and trim_vocab: one class and planted faults here, the others behind the marker."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.sweeps import load_script
from support.tiny import build

import graftkit

SCRIPT = Path(__file__).parent.parent / "scripts" / "sweep_tokens.py"

WORK = "LlamaForCausalLM|GPTNeoXForCausalLM|MambaForCausalLM|BertForMaskedLM|T5ForConditionalGeneration|Kosmos2ForConditionalGeneration"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    build("LlamaForCausalLM", directory)
    return directory


def damage(fault, source, output):
    tensors = load_file(output / "model.safetensors")
    if fault == "lm_head.weight differs":
        tensors["lm_head.weight"][43] += 1e-3
    elif fault == "the new input rows are not finite, or the old ones":
        tensors["model.embed_tokens.weight"] = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    elif fault == "missing_keys":
        del tensors["model.norm.weight"]
    elif fault == "the tokenizer gives":
        text = (output / "tokenizer.json").read_text()
        (output / "tokenizer.json").write_text(text.replace("<unk>", "<other>"))
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "fault",
    [None, "lm_head.weight differs", "the new input rows are not finite, or the old ones", "missing_keys", "the tokenizer gives"],
)  # fmt: skip
def test_a_damaged_result_is_called_wrong(fault, llama, tmp_path, monkeypatch):
    sweep = load_script("sweep_tokens")
    apply = graftkit.apply

    def apply_and_damage(recipe):
        report = apply({**recipe, "verify": {"outputs": False}})
        damage(fault, llama, tmp_path / "out")
        return report

    monkeypatch.setattr(graftkit, "apply", apply_and_damage)
    found = sweep._variant("LlamaForCausalLM", llama, tmp_path / "out", "new rows")
    assert found.verdict == ("wrong" if fault else "works")
    assert (fault or "") in found.reason


@pytest.mark.parametrize("fault", [None, "model.embed_tokens.weight differs", "rows for"])
def test_a_damaged_trimmed_result_is_called_wrong(fault, llama, tmp_path, monkeypatch):
    sweep = load_script("sweep_tokens")
    apply = graftkit.apply

    def apply_and_damage(recipe):
        report = apply({**recipe, "verify": {"outputs": False}})
        tensors = load_file(tmp_path / "out/model.safetensors")
        if fault == "model.embed_tokens.weight differs":
            tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].roll(1, 0)
        elif fault == "rows for":
            config = json.loads((tmp_path / "out/config.json").read_text())
            config["vocab_size"] += 1
            (tmp_path / "out/config.json").write_text(json.dumps(config))
            tables = {name: table for name, table in tensors.items() if len(table) == config["vocab_size"] - 1}
            tensors |= {name: torch.cat([table, table[:1]]) for name, table in tables.items()}
        save_file(tensors, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
        return report

    monkeypatch.setattr(graftkit, "apply", apply_and_damage)
    found = sweep._variant("LlamaForCausalLM", llama, tmp_path / "out", "trimmed")
    assert found.verdict == ("wrong" if fault else "works")
    assert (fault or "") in found.reason


def swept(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_families_work():
    done = swept("--jobs", "1", "--match", f"^({WORK})$")
    assert done.returncode == 0, done.stdout
    assert "{'works': 6}" in done.stdout


@pytest.mark.slow
def test_no_class_of_transformers_is_wrong():
    done = swept("--jobs", "2", "--limit", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) of \d+ classes in", done.stdout)[1]) >= 300
