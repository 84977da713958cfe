"""The sweep of upcycling over pairs of classes: one dense class, a planted fault, and the page."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from support.sweeps import SCRIPTS, load_script
from support.tiny import build

import graftkit


@pytest.fixture(scope="module")
def sweep():
    return load_script("sweep_upcycle")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    build("LlamaForCausalLM", directory)
    return directory


def test_a_pair_works_or_is_refused_with_its_reason(sweep, llama, tmp_path):
    word, why = sweep.try_pair(llama, tmp_path / "out", "MixtralForCausalLM")
    assert word.startswith("works")
    assert not why
    word, why = sweep.try_pair(llama, tmp_path / "none", "Qwen3MoeForCausalLM")
    assert (word, "gives other outputs" in why) == ("refused", True)


def test_a_damaged_result_is_called_wrong(sweep, llama, tmp_path, monkeypatch):
    apply = graftkit.apply

    def apply_and_damage(recipe):
        report = apply(recipe)
        path = tmp_path / "out/model.safetensors"
        state = load_file(path)
        state["model.layers.0.block_sparse_moe.experts.1.w2.weight"] += 0.01
        save_file(state, path, metadata={"format": "pt"})
        return report

    monkeypatch.setattr(graftkit, "apply", apply_and_damage)
    word, why = sweep.try_pair(llama, tmp_path / "out", "MixtralForCausalLM")
    assert word == "wrong"
    assert "logits moved by" in why


def test_the_page_counts_pairs(sweep):
    pairs = [
        sweep.Pairs("A", {"AMoe": ("works", ""), "BMoe": ("refused", "BMoe cannot do what A does: x")}),
        sweep.Pairs("C", why_none="sparse"),
    ]
    page = sweep.markdown(pairs, 3, "python x")
    assert "Run so far over 2 of 3 classes." in page
    assert "Run so far" not in sweep.markdown(pairs, 2, "python x")
    assert "2 classes: 1 are sparse, 1 dense, of which 1 have a sparse class with their rest." in page
    assert "| A | BMoe | refused | x |" in page


def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    """Of what is known nothing is tried again: no class takes as little as the limit here."""
    page, done = tmp_path / "page.md", tmp_path / "done.jsonl"
    planted = {"dense": "LlamaForCausalLM", "found": {"PlantedMoe": ["refused", "x does: planted"]}, "why_none": ""}
    done.write_text(json.dumps(planted) + "\n")
    command = [
        "--jobs",
        "1",
        "--match",
        "^(LlamaForCausalLM|GPT2LMHeadModel)$",
        "--limit",
        "0.01",
        "--out",
        page,
        "--done",
        done,
    ]
    found = subprocess.run(
        [sys.executable, SCRIPTS / "sweep_upcycle.py", *command], capture_output=True, text=True, check=False
    )
    assert found.returncode == 1, found.stderr
    text = page.read_text(encoding="utf-8")
    assert "| LlamaForCausalLM | PlantedMoe | refused | planted |" in text
    assert "| GPT2LMHeadModel | every sparse class | wrong | took more than 0 s |" in text
    assert [json.loads(line)["dense"] for line in done.read_text().splitlines()] == [
        "LlamaForCausalLM",
        "GPT2LMHeadModel",
    ]
