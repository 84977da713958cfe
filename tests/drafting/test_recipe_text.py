"""The text of a drafted recipe says what its mapping says, whatever a checkpoint's files hold."""

import pytest
import yaml

from graftkit.drafting.draft import Step
from graftkit.drafting.recipe_text import recipe_text

NASTY = [
    "<|a|>",
    "",
    "no",
    "1e5",
    "#x",
    "a: b",
    "[x",
    "'\"",
    "ä\u2028b",
    "\x1b[31m",
    "- x",
    "*a",
    "x\ny",
    "{{ a }}\n",
    " x",
]


@pytest.mark.parametrize("value", [*NASTY, NASTY, {text: text for text in NASTY}, True, 3, None], ids=repr)
def test_any_value_reads_as_it_was(value):
    step = Step("op", {"field": value}, {"op": "one\ntwo \x1b[31m", "field": "a # b: c"})
    mapping = {"version": 1, "base_model": "a", "operations": [step.mapping()], "output": "o"}
    text = recipe_text(["head\nop: evil", "  kept"], mapping, (step,), {"output": "last"})
    assert yaml.safe_load(text) == mapping
    assert text.splitlines()[:3] == ["# head", "# op: evil", "#  kept"]
    assert "\x1b" not in text
