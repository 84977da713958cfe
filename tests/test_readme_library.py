"""README's examples run as they stand, and print what it shows."""

import re
from pathlib import Path

import pytest
from peft import PeftModel
from support.command import here

from graftkit.recipe import load_recipe

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).parent.parent


def test_the_examples_of_the_library_run(tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text().partition("## As a library")[2].partition("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 2
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)  # noqa: S102 - as a reader runs it
    assert isinstance(names["model"], PeftModel)
    assert "<|pad|>" in names["tokenizer"].get_vocab()
    printed = capsys.readouterr().out
    assert "coroutine" in printed.splitlines()[0]
    assert "in memory; nothing was written" in printed
    assert (tmp_path / "out" / "quickstart" / "model.safetensors").is_file()


def blocks(heading, kind=""):
    section = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


def test_the_recipe_is_the_one_whose_plan_is_shown(tmp_path):
    (shown,) = blocks("A first result", "yaml")
    (tmp_path / "recipe.yaml").write_text(shown)
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe(ROOT / "recipes/quickstart.yaml")
    printed = here("plan", "recipes/quickstart.yaml", "--overwrite").stdout
    (shown,) = blocks("Plan")
    assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines()
