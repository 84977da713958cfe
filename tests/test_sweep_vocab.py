"""The sweep over every class: a dozen families and planted faults here, all of them behind the marker."""

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
SCRIPT, PAGE = ROOT / "scripts" / "sweep_vocab.py", ROOT / "docs" / "sweep_vocab.md"

WORK = ("LlamaForCausalLM", "GPTNeoXForCausalLM", "MixtralForCausalLM", "MambaForCausalLM", "Gemma4ForCausalLM",
        "BertForMaskedLM", "T5ForConditionalGeneration", "BartForConditionalGeneration", "Kosmos2ForConditionalGeneration",
        "Pix2StructForConditionalGeneration")  # fmt: skip

#: Class -> why it is refused.
REFUSED = {
    "DeepseekV4ForCausalLM": "tid2eid' is indexed by the vocabulary and is not floating point",
    "BltForCausalLM": "by config.json's patcher_config.vocab_size; whether that is this vocabulary",
    "CpmAntForCausalLM": "1355 rows where config.json's vocab_size is 331",
    "MobileBertForMaskedLM": "is neither input table, output table nor output bias",
    "MusicgenForCausalLM": "it names a ModuleList",
}


def run(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done


def only(*names):
    return f"^({'|'.join(names)})$"


def verdicts(page):
    """Class -> verdict, from the tables by kind."""
    return dict(
        re.findall(r"^\| (\w+) \| (works|works, outputs not run|refused|wrong|not built) \|", page, re.MULTILINE)
    )


@pytest.mark.slow
def test_a_dozen_families_work_or_are_refused_with_their_reason(tmp_path):
    page = tmp_path / "page.md"
    done = run("--jobs", 1, "--match", only(*WORK, *REFUSED), "--out", page)
    text = page.read_text(encoding="utf-8")
    assert done.returncode == 0
    assert verdicts(text) == dict.fromkeys(WORK, "works") | dict.fromkeys(REFUSED, "refused")
    for name, reason in REFUSED.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert reason in row
    assert "| all, each once | 15 | 10 | 0 | 5 | 0 | 0 |" in text
    assert "--match '^(LlamaForCausalLM|" in text


def test_a_class_that_takes_too_long_is_wrong_and_fails_the_run(tmp_path):
    page = tmp_path / "page.md"
    done = run("--jobs", 1, "--match", "^LlamaForCausalLM$", "--limit", 0, "--out", page)
    assert done.returncode == 1
    assert verdicts(page.read_text(encoding="utf-8")) == {"LlamaForCausalLM": "wrong"}
    assert "| LlamaForCausalLM | took more than 0 s |" in page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sweep():
    return load_script("sweep_vocab")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    build("LlamaForCausalLM", directory)
    return directory


FAULTS = {
    "zero row": "zero or not finite",
    "old row": "old input rows",
    "head": "an old logit moved",
    "layer": "an old logit moved",
    "missing": "missing_keys",
    "tokenizer": "the tokenizer gives",
}


def damage(fault, source, output, live):
    tensors = load_file(output / "model.safetensors")
    if fault == "zero row":
        tensors["lm_head.weight"][live + 1] = 0
    elif fault == "old row":
        tensors["model.embed_tokens.weight"][300] += 1e-3
    elif fault == "head":
        tensors["lm_head.weight"][7] += 1e-2
    elif fault == "layer":
        tensors["model.layers.1.mlp.up_proj.weight"][3] *= 1.001
    elif fault == "missing":
        del tensors["model.norm.weight"]
    else:
        (output / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_damaged_result_is_called_wrong(fault, sweep, llama, tmp_path, monkeypatch):
    apply = graftkit.apply

    def apply_and_damage(recipe):
        report = apply(recipe)
        if fault:
            damage(fault, llama, tmp_path / "out", sweep.LIVE)
        return report

    monkeypatch.setattr(graftkit, "apply", apply_and_damage)
    found = sweep.extend("LlamaForCausalLM", llama, tmp_path / "out", sweep.LIVE, 8)
    if fault:
        assert found.verdict == "wrong"
        assert FAULTS[fault] in found.reason
    else:
        assert (found.verdict, found.reason) == ("works", "")
        assert found.moved < 1e-5


def test_a_table_of_another_size_is_called_wrong(sweep, llama, tmp_path):
    assert sweep.extend("LlamaForCausalLM", llama, tmp_path / "out", sweep.LIVE, 8).verdict == "works"
    with pytest.raises(sweep.Wrong, match="336 rows, vocab_size 336, wanted 352"):
        sweep.check(llama, tmp_path / "out", sweep.LIVE, 32)


def test_the_page_holds_every_class_and_nothing_wrong():
    text = PAGE.read_text(encoding="utf-8")
    listed = verdicts(text)
    assert "wrong" not in listed.values()
    assert "## wrong: 0" in text
    from transformers import __version__

    if f"transformers {__version__} " in text:
        assert set(listed) == {
            name for kind in ("causal_lm", "masked_lm", "seq2seq_lm", "vision_language") for name in classes(kind)
        }


@pytest.mark.slow
def test_no_class_of_transformers_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    done = run("--jobs", 2, "--limit", 300, "--out", page)
    found = verdicts(page.read_text(encoding="utf-8"))
    assert len(found) >= 300
    assert [name for name, verdict in found.items() if verdict == "wrong"] == [], done.stdout
    assert done.returncode == 0
    assert sum(verdict == "works" for verdict in found.values()) > 0.9 * len(found)
