"""The JSON Schema says to an editor what the recipe says to its reader."""

import json
from pathlib import Path

import pytest
import yaml

from graftkit.errors import RecipeError
from graftkit.recipe import json_schema, parse_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))

HEAD = {"version": 1, "base_model": "a", "output": "o"}


def op(**fields):
    return {**HEAD, "operations": [{"op": "extend_vocab", **fields}]}


def rename(**fields):
    return {**HEAD, "operations": [{"op": "rename_tokens", **fields}]}


GOOD = [
    op(tokens=["x"]),
    op(tokens=["x", {"content": "y", "init": "mean", "output_init": None, "lstrip": True}], init={"scheme": "mean"}),
    op(special_tokens=["x"], init={"scheme": "describe", "text": "t"}, output_init="normal"),
    op(roles={"pad_token": "p"}, init={"scheme": "mean_cov", "eps": 1e-3}),
    op(tokens=["x"], init="describe"),
    op(tokens=["x"], init={"scheme": "distill", "texts": "t.txt", "learning_rate": 1e-4, "snippet_len": 20}),
    op(tokens={"file": "w.txt"}, existing="skip", single_word=True),
    rename(names={"a": "b", "c": {"content": "d", "special": False, "init": "keep"}}),
    rename(names={"a": "b"}, special=True, init={"scheme": "describe", "text": "t"}, output_init="mean"),
    {**HEAD, "operations": [{"op": "reinit_rows", "tokens": "never_trained"}]},
    {**HEAD, "operations": [{"op": "reinit_rows", "tokens": ["a", 5, {"first": 7, "last": 9}], "init": "normal"}]},
    op(chat_template="{{ x }}"),
    op(chat_template={"file": "x"}, pad_to_multiple_of=8, output_init=None),
    {**op(tokens=["x"]), "verify": {"outputs": False}, "seed": 3, "revision": None, "allow_nonfinite": True},
]
BAD = [
    {**HEAD},
    {**HEAD, "operations": []},
    {**HEAD, "operations": [{"tokens": ["x"]}]},
    {**op(tokens=["x"]), "version": 2},
    {**op(tokens=["x"]), "seed": -1},
    {**op(tokens=["x"]), "sed": 1},
    {**op(tokens=["x"]), "verify": {"output": True}},
    op(tokens="x"),
    op(tokens=[3]),
    op(tokens=[" "]),
    op(tokens=[{"init": "mean"}]),
    op(tokens=["x"], init="men"),
    op(tokens=["x"], init="copy"),
    op(tokens={"file": "w.txt", "init": "mean"}),
    op(tokens=["x"], existing="keep"),
    rename(),
    rename(names={}),
    rename(names={"a": "b"}, init="men"),
    rename(names={"a": {"special": True}}),
    {**HEAD, "operations": [{"op": "reinit_rows", "tokens": "never"}]},
    {**HEAD, "operations": [{"op": "reinit_rows", "tokens": []}]},
    {**HEAD, "operations": [{"op": "reinit_rows", "tokens": [-1]}]},
    {**HEAD, "operations": [{"op": "reinit_rows", "tokens": [{"first": 1}]}]},
    op(tokens=["x"], init={"text": "t"}),
    op(tokens=["x"], init={"scheme": "mean", "eps": 1}),
    op(tokens=["x"], init={"scheme": "normal", "std": 0}),
    op(tokens=["x"], init=None),
    op(roles={"pad": "x"}),
    op(pad_to_multiple_of=0),
    op(chat_template={"path": "x"}),
    op(tokens=["x"], rank=1),
]


@pytest.fixture(scope="module")
def validator():
    """Judges by the schema, which is one itself."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("data", [*GOOD, *BAD])
def test_the_schema_judges_as_the_reader_does(validator, data):
    assert validator.is_valid(data) == (data in GOOD)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_of_the_project_keep_to_the_schema(validator, path):
    assert validator.is_valid(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_of_the_project_are_valid(path):
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    read = parse_recipe(written)
    assert [spec.op for spec in read.operations] == [operation["op"] for operation in written["operations"]]


def test_good_and_bad_are_so_for_the_reader():
    for data in GOOD:
        parse_recipe(data)
    for data in BAD:
        with pytest.raises(RecipeError):
            parse_recipe(data)


def test_every_field_is_described_and_nothing_else_is_allowed():
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "graftkit recipe"
    assert list(schema["properties"])[:2] == ["version", "base_model"]
    assert schema["required"] == ["version", "base_model", "operations", "output"]
    for owner in (schema, *schema["$defs"].values()):
        assert owner["additionalProperties"] is False
        assert owner["description"]
        for name, field in owner["properties"].items():
            assert field.get("description") or "const" in field, name


def test_defaults_are_written_as_in_a_recipe_and_names_of_specs_are_required():
    definitions = json_schema()["$defs"]
    assert definitions["ExtendVocab"]["properties"]["init"]["default"] == "mean"
    assert definitions["ExtendVocab"]["required"] == ["op"]
    assert definitions["Copy"]["required"] == ["scheme", "token"]
    assert json.loads(json.dumps(json_schema())) == json_schema()
