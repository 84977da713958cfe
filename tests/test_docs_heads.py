"""docs/heads.md: its recipes are recipes, and what it links to is there."""

import re
from pathlib import Path

import pytest
import yaml

from graftkit.recipe import parse_recipe

pytestmark = pytest.mark.numerical

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "heads.md").read_text(encoding="utf-8")
HEAD = {"op": "replace_head", "task": "sequence_classification"}


def test_the_recipes_of_the_page_are_recipes():
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    assert len(blocks) == 5
    for block in blocks:
        init = block.get("init") if isinstance(block, dict) else None
        whole = [{**HEAD, "labels": list(init["words"]), "init": init}] if init else block
        operations = whole["operations"] if isinstance(whole, dict) else whole
        parse_recipe({"version": 1, "base_model": "a", "operations": operations, "output": "o"})


def test_every_task_and_scheme_of_a_head_is_on_the_page():
    from graftkit.recipe.replace_head import TASKS

    for name in (*TASKS, "zeros", "normal", "verbalizer", "ridge", "lda", "prototype", "lsuv"):
        assert f"`{name}`" in PAGE


def test_what_is_linked_is_there():
    for target in re.findall(r"\]\(([\w./-]+)\)", PAGE):
        assert (DOCS / target).exists(), target
