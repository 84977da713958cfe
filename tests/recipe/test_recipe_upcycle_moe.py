"""upcycle_moe as recipes write it: what is read, and what is refused and where."""

import pytest
import yaml

from graftkit.errors import RecipeError
from graftkit.recipe import dump_recipe, load_recipe, parse_recipe


def recipe(**fields):
    return {"version": 1, "base_model": "a", "operations": [{"op": "upcycle_moe", **fields}], "output": "o"}


def test_what_is_read_is_written_again():
    fields = {"num_experts": 8, "num_experts_per_tok": 2, "router_init": {"scheme": "normal", "std": 0.02}}
    assert yaml.safe_load(dump_recipe(parse_recipe(recipe(**fields))))["operations"] == [
        {"op": "upcycle_moe", **fields}
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "operations.0.num_experts: required field is missing"),
        ({"num_experts": 1}, "operations.0.num_experts: "),
        (
            {"num_experts": 4, "num_experts_per_tok": 5},
            "operations.0.num_experts_per_tok: 5 are more than the 4 experts",
        ),
        ({"num_experts": 4, "router_init": "zeros"}, "operations.0.router_init: all experts would tie"),
        ({"num_experts": 4, "router_init": "matched"}, "operations.0.router_init: there are no trained rows"),
        ({"num_experts": 4, "experts": 2}, "operations.0.experts: unknown field; did you mean 'num_experts'?"),
    ],
)
def test_what_is_wrong_is_said(fields, words):
    with pytest.raises(RecipeError) as error:
        parse_recipe(recipe(**fields))
    assert words in str(error.value)


def test_the_line_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "version: 1\nbase_model: a\noperations:\n  - op: upcycle_moe\n    num_experts: 2\n    num_experts_per_tok: 3\noutput: o\n"
    )
    with pytest.raises(RecipeError, match=r"recipe.yaml:6: operations.0.num_experts_per_tok: 3 are more"):
        load_recipe(path)
