"""widen as recipes write it: what is read, what is refused and where, and the schema says the same."""

import jsonschema
import pytest
import yaml

from graftkit.errors import RecipeError
from graftkit.recipe import dump_recipe, json_schema, load_recipe, parse_recipe


def recipe(**fields):
    return {"version": 1, "base_model": "a", "operations": [{"op": "widen", **fields}], "output": "o"}


GOOD = [
    {"sizes": {"intermediate_size": 96}},
    {"sizes": {"text_config.intermediate_size": 96, "num_key_value_heads": 4}, "init": "matched"},
    {"sizes": {"n_inner": 8192}, "init": {"scheme": "orthogonal", "gain": 0.5}},
    {"sizes": {"num_experts": 16}, "allow_change": True, "texts": "texts.jsonl"},
]

#: What is wrong, whether a JSON Schema cannot say it, and the words.
BAD = [
    ({}, False, "operations.0.sizes: required field is missing"),
    ({"sizes": {}}, False, "operations.0.sizes: "),
    ({"sizes": {"intermediate_size": "96"}}, False, "operations.0.sizes.intermediate_size: must be a whole number"),
    ({"sizes": {"intermediate_size": 0}}, False, "operations.0.sizes.intermediate_size: "),
    ({"sizes": {"intermediate_size": 96.5}}, False, "operations.0.sizes.intermediate_size: "),
    ({"sizes": {"intermediate_size": True}}, False, "operations.0.sizes.intermediate_size: "),
    ({"sizes": ["intermediate_size"]}, False, "operations.0.sizes: "),
    ({"sizes": {"n_inner": 96}, "init": "zeros"}, True, "operations.0.init: what is new would never learn"),
    ({"sizes": {"n_inner": 96}, "init": {"scheme": "ones"}}, True, "all new units would be equal and learn the same"),
    ({"sizes": {"n_inner": 96}, "init": {"scheme": "mup", "base_width": 8}}, True, "gives learning rates to whole parameters"),
    ({"sizes": {"n_inner": 96}, "texts": "a.txt"}, True, "operations.0.texts: measures nothing where the outputs stay as they are"),
    ({"sizes": {"n_inner": 96}, "size": 3}, False, "operations.0.size: unknown field; did you mean 'sizes'?"),
]  # fmt: skip


@pytest.mark.parametrize("fields", GOOD)
def test_what_is_read_is_written_again(fields):
    read = parse_recipe(recipe(**fields))
    jsonschema.validate(recipe(**fields), json_schema())
    assert yaml.safe_load(dump_recipe(read))["operations"] == [{"op": "widen", "allow_change": False, **fields}]
    assert hash(read.operations[0])


@pytest.mark.parametrize(("fields", "beyond_schema", "words"), BAD)
def test_what_is_wrong_is_said(fields, beyond_schema, words):
    with pytest.raises(RecipeError) as error:
        parse_recipe(recipe(**fields))
    assert words in str(error.value)
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe(**fields)) == beyond_schema


def test_the_line_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\nbase_model: a\noperations:\n  - op: widen\n    sizes:\n      n_inner: wide\noutput: o\n"
    )
    with pytest.raises(RecipeError, match=r"recipe.yaml:6: operations.0.sizes.n_inner: "):
        load_recipe(path)
