"""Operations on blocks as recipes write them: what is read, what is refused and where, and the schema says the same."""

import jsonschema
import pytest

from graftkit.errors import RecipeError
from graftkit.recipe import dump_recipe, json_schema, load_recipe, parse_recipe
from graftkit.recipe.block_numbers import resolve_blocks


def recipe(op, **fields):
    return {"version": 1, "base_model": "a", "operations": [{"op": op, **fields}], "output": "o"}


GOOD = [
    ("drop_blocks", {"blocks": "last 4"}),
    ("drop_blocks", {"blocks": [0, "20-27", "first 2"]}),
    ("drop_blocks", {"keep": ["0-3", 5]}),
    ("arrange_blocks", {"blocks": ["0-23", "8-31"]}),
    ("arrange_blocks", {"blocks": [2, 2, 1]}),
    ("insert_blocks", {"after": [7, 15, 23]}),
    ("insert_blocks", {"after": 7, "init": "copy"}),
    ("insert_blocks", {"every": 8, "init": "identity"}),
]

BLOCKS = "must hold block numbers from 0 on, ranges such as '20-27', 'first N' or 'last N'; found "

#: What is wrong, whether a JSON Schema cannot say it, and the words.
BAD = [
    ("drop_blocks", {}, True, "operations.0: selects nothing; give blocks or keep"),
    ("drop_blocks", {"blocks": [1], "keep": [2]}, True, "operations.0.keep: says the same as blocks"),
    ("drop_blocks", {"blocks": "last"}, False, f"operations.0.blocks: {BLOCKS}the text 'last'"),
    ("drop_blocks", {"blocks": "last 0"}, False, BLOCKS),
    ("drop_blocks", {"blocks": [-1]}, False, f"{BLOCKS}the number -1"),
    ("drop_blocks", {"blocks": [True]}, False, f"{BLOCKS}true"),
    ("drop_blocks", {"blocks": []}, True, "operations.0.blocks: names no block"),
    ("drop_blocks", {"blocks": ["9-3"]}, True, "the range '9-3' ends before it begins; write '3-9'"),
    ("arrange_blocks", {}, False, "operations.0.blocks: required field is missing"),
    ("arrange_blocks", {"blocks": {"from": 1}}, False, f"{BLOCKS}a mapping"),
    ("insert_blocks", {}, True, "operations.0: names no place; give after or every"),
    ("insert_blocks", {"every": 8, "after": [1]}, True, "operations.0.every: says where as after does"),
    ("insert_blocks", {"every": 0}, False, "operations.0.every: must be"),
    ("insert_blocks", {"every": 1, "init": "zeros"}, False, "operations.0.init: unknown value 'zeros'"),
]


@pytest.mark.parametrize(("op", "fields"), GOOD)
def test_what_is_right_is_read_and_dumped_as_it_was(op, fields, tmp_path):
    value = parse_recipe(recipe(op, **fields))
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(value))
    assert load_recipe(path) == value
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe(op, **fields))


@pytest.mark.parametrize(("op", "fields", "valid", "words"), BAD)
def test_what_is_wrong_is_named_at_its_place(op, fields, valid, words):
    with pytest.raises(RecipeError) as error:
        parse_recipe(recipe(op, **fields))
    assert words in str(error.value)
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe(op, **fields)) == valid


def test_yaml_ranges_need_no_quotes(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\nbase_model: a\noperations: [{op: arrange_blocks, blocks: [0-1, first 2, 1]}]\noutput: o\n"
    )
    assert load_recipe(path).operations[0].blocks == ("0-1", "first 2", 1)


@pytest.mark.parametrize(
    ("items", "numbers"),
    [(["0-2", 5], (0, 1, 2, 5)), (["last 2", 0], (6, 7, 0)), (["first 8"], tuple(range(8))), ([3, 3], (3, 3))],
)
def test_numbers_keep_their_order(items, numbers):
    assert resolve_blocks(items, 8) == numbers


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (8, "no block 8"),
        ("6-9", "no block 9"),
        ("0-999999", "no block 999999"),
        ("last 9", "'last 9' names more blocks"),
    ],
)
def test_what_is_not_there_is_said(item, words):
    with pytest.raises(ValueError, match=f"{words}.*the model has 8"):
        resolve_blocks([item], 8)
