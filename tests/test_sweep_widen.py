"""The sweep of widths over every class: planted faults and one family here, more behind the marker."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.sweeps import load_script
from support.tiny import build

import graftkit

ROOT = Path(__file__).parent.parent
SCRIPT, PAGE = ROOT / "scripts" / "sweep_widen.py", ROOT / "docs" / "sweep_widen.md"

#: Class -> verdicts of feed-forward, experts, key-value heads, hidden size; ``bitwise`` may be said on one machine and not on another.
EXPECTED = {
    "LlamaForCausalLM": ("works", "no such field", "works", "works"),
    "GptOssForCausalLM": ("works", "no such field", "works", "works"),
    "Phi3ForCausalLM": ("works", "no such field", "works", "works"),
    "BitNetForCausalLM": ("refused", "no such field", "works", "refused"),
    "T5ForConditionalGeneration": ("works", "no such field", "no such field", "refused"),
    "BertForMaskedLM": ("works", "no such field", "no such field", "refused"),
}


@pytest.fixture(scope="module")
def sweep():
    return load_script("sweep_widen")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    build("LlamaForCausalLM", directory)
    return directory


def damage(name, change):
    def damaged(state):
        state[name] = change(state[name].clone())
        return state

    return damaged


FAULTS = {
    "a new column that is not zero": (damage("model.layers.0.mlp.down_proj.weight", lambda v: v + 0.01), "logits moved by"),
    "old rows in another order": (damage("model.layers.0.mlp.up_proj.weight", lambda v: v.flip(0)), "logits moved by"),
    "another tensor": (damage("model.norm.weight", lambda v: v + 1e-6), "model.norm.weight is not the source's"),
    "missing": (lambda state: {n: v for n, v in state.items() if n != "model.norm.weight"}, "missing_keys"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_result_is_called_wrong(fault, sweep, llama, tmp_path, monkeypatch):
    apply, (change, words) = graftkit.apply, FAULTS[fault]

    def apply_and_damage(recipe):
        report = apply(recipe)
        path = tmp_path / "out/model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        return report

    monkeypatch.setattr(graftkit, "apply", apply_and_damage)
    verdict, reason = sweep.try_width(llama, tmp_path / "out", "feed-forward")
    assert verdict == "wrong"
    assert words in reason


def test_one_class_and_its_page(sweep, llama, tmp_path):
    assert sweep.try_width(llama, tmp_path / "out", "key-value heads")[0].startswith("works")
    assert sweep.try_width(llama, tmp_path / "none", "experts") == ("no such field", "")
    page = sweep.markdown([sweep.Verdict("A", dict.fromkeys(sweep.FIELDS, "works"))], "python x")
    assert "| A | works | works | works | works |" in page


def verdicts(page):
    """Class -> its four verdicts."""
    rows = re.findall(
        r"^\| (\w+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page.partition("## Every class")[2], re.MULTILINE
    )
    return {name: tuple(found) for name, *found in rows if name != "class"}


def test_the_page_holds_nothing_wrong():
    text = PAGE.read_text(encoding="utf-8")
    listed = verdicts(text)
    assert len(listed) > len(EXPECTED)
    assert not any("wrong" in found for found in listed.values())
    assert re.search(r"python scripts/sweep_widen\.py", text)


@pytest.mark.slow
def test_families_work_or_are_refused(tmp_path):
    page = tmp_path / "page.md"
    match = f"^({'|'.join(EXPECTED)})$"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--jobs", "1", "--match", match, "--out", page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = verdicts(page.read_text(encoding="utf-8"))
    assert {name: tuple(word.partition(",")[0] for word in words) for name, words in found.items()} == EXPECTED
