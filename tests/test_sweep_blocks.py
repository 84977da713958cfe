"""The sweep of blocks over every class: one family and planted faults here, all of them behind the marker."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.sweeps import load_script
from support.tiny import build, classes

import graftkit

ROOT = Path(__file__).parent.parent
SCRIPT, PAGE = ROOT / "scripts" / "sweep_blocks.py", ROOT / "docs" / "sweep_blocks.md"

#: Class -> verdicts of identity, copy, reversed, drop last, and a part of the reason where one is refused.
EXPECTED = {
    "LlamaForCausalLM": (("works",) * 4, ""),
    "MambaForCausalLM": (("works",) * 4, ""),
    "MixtralForCausalLM": (("works",) * 4, ""),
    "BertForMaskedLM": (("refused", "works", "works", "works"), "no zeros make a block the identity"),
    "T5ForConditionalGeneration": (("works", "works", "refused", "works"), "relative_attention_bias"),
    "DiffLlamaForCausalLM": (("refused", "refused", "refused", "works"), "self_attn.lambda_init"),
    "AlbertForMaskedLM": (("refused",) * 4, "no list of layers"),
    "RwkvForCausalLM": (("works", "works", "refused", "refused"), "does not load with these blocks: ZeroDivisionError"),
}


@pytest.fixture(scope="module")
def sweep():
    return load_script("sweep_blocks")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    build("LlamaForCausalLM", directory)
    return directory


FAULTS = {
    "a writer that is not zero": ("model.layers.1.mlp.down_proj.weight", 1e-3, "is not model.layers.0"),
    "an old weight": ("model.layers.2.mlp.up_proj.weight", 1e-3, "is not model.layers.1"),
    "outside": ("model.norm.weight", 1e-3, "model.norm.weight is not model.norm.weight"),
    "missing": ("model.norm.weight", None, "missing_keys"),
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("outside", "an old weight") else name for name in FAULTS],
)
def test_a_damaged_result_is_called_wrong(fault, sweep, llama, tmp_path, monkeypatch):
    apply, (name, change, words) = graftkit.apply, FAULTS[fault]

    def apply_and_damage(recipe):
        report = apply({**recipe, "verify": {"outputs": False}})
        path = tmp_path / "out/model.safetensors"
        tensors = load_file(path)
        kept = tensors.pop(name)
        save_file(tensors | ({name: kept + change} if change else {}), path, metadata={"format": "pt"})
        return report

    monkeypatch.setattr(graftkit, "apply", apply_and_damage)
    verdict, reason = sweep.try_operation(llama, tmp_path / "out", "identity")
    assert verdict == "wrong"
    assert words in reason


def test_a_model_of_its_own_number_of_blocks_and_its_page(sweep, llama, tmp_path):
    assert sweep.try_operation(llama, tmp_path / "out", "identity") == ("works", "")
    page = sweep.markdown([sweep.Verdict("A", dict.fromkeys(sweep.OPERATIONS, "works"))], "python x")
    assert "| A | works | works | works | works |" in page


def verdicts(page):
    """Class -> its four verdicts."""
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    return {name: tuple(found) for name, *found in rows if name not in ("class", "operation")}


def test_the_page_holds_nothing_wrong():
    text = PAGE.read_text(encoding="utf-8")
    listed = verdicts(text.partition("## Every class")[2])
    assert not {name for name, found in listed.items() if "wrong" in found}
    assert "| wrong: " not in text
    assert re.search(r"python scripts/sweep_blocks\.py", text)


@pytest.mark.slow
def test_families_work_or_are_refused_with_their_reason(tmp_path):
    page = tmp_path / "page.md"
    match = f"^({'|'.join(EXPECTED)})$"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--jobs", "1", "--match", match, "--out", page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text(encoding="utf-8")
    assert verdicts(text.partition("## Every class")[2]) == {name: found for name, (found, _) in EXPECTED.items()}
    for name, (_, words) in EXPECTED.items():
        assert not words or any(line.startswith(f"| {name} |") and words in line for line in text.splitlines())


@pytest.mark.slow
def test_no_class_of_transformers_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--jobs", "2", "--limit", "600", "--out", page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = verdicts(page.read_text(encoding="utf-8").partition("## Every class")[2])
    assert len(found) > 0.9 * len({*classes("causal_lm"), *classes("masked_lm"), *classes("seq2seq_lm")})
