"""Reading a recipe loads pydantic and yaml, and nothing that is slow to load."""

import json
import subprocess
import sys

from graftkit.recipe.operations import OPERATIONS

RECIPE = {"version": 1, "base_model": "a", "operations": [{"op": "extend_vocab", "tokens": ["x"]}], "output": "o"}

PROGRAM = f"""
import json, sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += 1
sys.setprofile(count)
import pydantic, yaml
from pydantic import BaseModel
class Small(BaseModel):
    text: str
floor, calls = calls, 0
from graftkit.recipe import dump_recipe, json_schema, load_recipe, parse_recipe
parse_recipe({RECIPE!r})
ours = calls
sys.setprofile(None)
print(json.dumps([sorted(sys.modules), floor, ours]))
"""


def run():
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_no_slow_library_is_loaded():
    modules, _, _ = run()
    roots = {name.partition(".")[0] for name in modules}
    assert "pydantic" in roots
    assert not roots & {"torch", "transformers", "numpy", "rich", "safetensors", "tokenizers", "huggingface_hub"}
    assert "pydantic.networks" not in modules
    assert "pydantic.v1" not in modules


def test_the_models_of_an_operation_make_less_than_a_tenth_of_the_calls_of_loading_pydantic():
    _, floor, ours = run()
    assert 0 < ours / len(OPERATIONS) < floor / 10
