"""The sweep of new heads over every class: a few that need care and planted faults here, all of them behind the marker."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.families import build
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import graftkit

ROOT = Path(__file__).parent.parent
SCRIPT, PAGE = ROOT / "scripts" / "sweep_heads.py", ROOT / "docs" / "sweep_heads.md"

WORK = ("T5GemmaForSequenceClassification", "PPLCNetForImageClassification", "WavLMForSequenceClassification")

#: Class -> why it is refused.
REFUSED = {
    "RoFormerForMultipleChoice": "its head reads the last position, which is padding where the tokenizer pads on the right",
    "PerceiverForImageClassificationLearned": "or has in another shape, such as 'perceiver.encoder.cross_attention",
}


def run(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done


def counts(page):
    """Task -> works, refused, wrong, not built."""
    found = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    return {task: tuple(map(int, numbers)) for task, *numbers in found}


@pytest.mark.slow
def test_classes_that_need_care_work_or_are_refused_with_their_reason(tmp_path):
    page, done = tmp_path / "page.md", tmp_path / "done.jsonl"
    found = run("--jobs", 1, "--match", f"^({'|'.join([*WORK, *REFUSED])})$", "--out", page, "--done", done)
    text = page.read_text(encoding="utf-8")
    assert found.returncode == 0, found.stdout
    assert tuple(map(sum, zip(*counts(text).values(), strict=True))) == (len(WORK), len(REFUSED), 0, 0)
    for name, reason in REFUSED.items():
        assert reason in next(line for line in text.splitlines() if f"| {name} |" in line)
    assert len(done.read_text().splitlines()) == len(WORK) + len(REFUSED)


def test_a_run_goes_on_where_it_was_stopped_and_a_class_that_takes_too_long_is_wrong(tmp_path):
    page, done = tmp_path / "page.md", tmp_path / "done.jsonl"
    first = next(kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == "LlamaForCausalLM")
    planted = {
        "task": "causal_lm",
        "model_type": first,
        "class_name": "LlamaForCausalLM",
        "verdict": "refused",
        "reason": "planted",
    }
    done.write_text(json.dumps(planted) + "\n")
    found = run(
        "--jobs", 1, "--match", "^(LlamaForCausalLM|GPT2LMHeadModel)$", "--limit", 0.01, "--out", page, "--done", done
    )
    assert (found.returncode, page.exists()) == (1, True), found.stderr
    assert counts(page.read_text(encoding="utf-8")) == {"causal_lm": (0, 1, 1, 0)}
    assert "| causal_lm | GPT2LMHeadModel | took more than 0.01 s |" in page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("sweep_heads", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("sweep")
    source = build("llama", place / "source")
    operation = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b", "c"], "init": "normal"}
    recipe = {"version": 1, "base_model": str(source), "operations": [operation], "output": str(place / "out")}
    graftkit.apply({**recipe, "verify": {"outputs": False}})
    return source, place / "out"


def without_head(tensors):
    del tensors["score.weight"]


def another_norm(tensors):
    tensors["model.norm.weight"][3] += 1e-3


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(None, ""), (without_head, "missing_keys"), (another_norm, "the backbone's norm.weight differs")],
)
def test_a_damaged_result_is_called_wrong(damage, reason, sweep, made, tmp_path):
    source, output = made
    for path in output.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if damage is None:
        sweep.check(source, tmp_path, labels=True)
        return
    tensors = load_file(output / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(sweep.Wrong, match=reason):
        sweep.check(source, tmp_path, labels=True)


def test_the_page_holds_every_class_and_nothing_wrong(sweep):
    from transformers import __version__

    text = PAGE.read_text(encoding="utf-8")
    listed = counts(text)
    assert "## wrong: 0" in text
    assert set(listed) == set(sweep.TASKS)
    assert all(wrong == 0 for _, _, wrong, _ in listed.values())
    if f"transformers {__version__} " in text:
        assert {task: sum(numbers) for task, numbers in listed.items()} == {
            task: len(sweep.jobs(task, "")) for task in listed
        }


@pytest.mark.slow
def test_no_head_of_transformers_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    done = run("--jobs", 2, "--out", page)
    found = counts(page.read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stdout
    assert sum(works for works, *_ in found.values()) > 0.9 * sum(map(sum, found.values()))
