"""reinit as recipes write it: what is read, what is refused and where, and the schema says the same."""

import jsonschema
import pytest

from graftkit.errors import RecipeError
from graftkit.recipe import dump_recipe, json_schema, load_recipe, parse_recipe


def recipe(**fields):
    return {"version": 1, "base_model": "a", "operations": [{"op": "reinit", **fields}], "output": "o"}


GOOD = [
    {"layers": "last 2"},
    {"layers": "first 11"},
    {"layers": [0, 3]},
    {"parameters": ["*.mlp.*", "!*.bias"]},
    {"layers": "last 1", "parameters": ["!*.bias"], "init": "orthogonal"},
    {"layers": [0], "init": {"scheme": "kaiming_normal", "mode": "fan_out", "nonlinearity": "relu"}},
    {"layers": [0], "init": {"scheme": "mup", "base_width": 256, "std": 0.02}},
    {"layers": [0], "init": None},
]

BAD = [
    ({}, True, "operations.0: selects nothing; give layers, parameters or both"),
    (
        {"layers": "last"},
        False,
        "operations.0.layers: must be 'last N', 'first N' or a list of layer numbers from 0 on",
    ),
    ({"layers": "last 0"}, False, "operations.0.layers: must be"),
    ({"layers": 2}, False, "found the number 2"),
    ({"layers": [-1]}, False, "operations.0.layers: must be"),
    ({"layers": [True]}, False, "operations.0.layers: must be"),
    ({"layers": [1, 1]}, True, "operations.0.layers: names a layer twice"),
    ({"parameters": ["!*.bias"]}, True, "operations.0.parameters: only leaves out"),
    ({"parameters": ["*", "*"]}, True, "operations.0.parameters.1: the pattern '*' is given a second time"),
    ({"parameters": "*"}, False, "operations.0.parameters: must be a list"),
    ({"layers": [0], "init": "mup"}, False, "operations.0.init: 'mup' needs base_width"),
    ({"layers": [0], "init": {"scheme": "normal", "std": "1e-3"}}, False, "operations.0.init.std: must be a number"),
    ({"layers": [0], "schem": "normal"}, False, "operations.0.schem: unknown field"),
]


@pytest.mark.parametrize("fields", GOOD)
def test_what_is_right_is_read_and_dumped_as_it_was(fields, tmp_path):
    value = parse_recipe(recipe(**fields))
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(value))
    assert load_recipe(path) == value
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe(**fields))


@pytest.mark.parametrize(("fields", "valid", "words"), BAD)
def test_what_is_wrong_is_named_at_its_place(fields, valid, words):
    """``valid`` marks what a JSON Schema cannot say."""
    with pytest.raises(RecipeError) as error:
        parse_recipe(recipe(**fields))
    assert words in str(error.value)
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe(**fields)) == valid


@pytest.mark.parametrize(
    ("fields", "count", "numbers"),
    [({"layers": "last 2"}, 12, (10, 11)), ({"layers": "first 2"}, 12, (0, 1)), ({"layers": [4, 1]}, 12, (4, 1)),
     ({"layers": "last 3"}, 2, (-1, 0, 1))],
)  # fmt: skip
def test_layer_numbers(fields, count, numbers):
    assert parse_recipe(recipe(**fields)).operations[0].layer_numbers(count) == numbers
