"""Overrides from the command line replace values, and their problems name them."""

import pytest

from graftkit.errors import RecipeError
from graftkit.recipe import Describe, Mean, Normal, SubwordMean, load_recipe

TEXT = """\
version: 1
base_model: a
operations:
  - op: extend_vocab
    tokens: [x, {content: y, init: zeros}]
    init: zeros
output: o
verify:
"""


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(TEXT.replace("verify:\n", ""))
    return "r.yaml"


def problems_of(recipe_file, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, overrides)
    return caught.value.problems


def test_values_are_replaced_made_and_parsed_as_yaml(recipe_file):
    recipe = load_recipe(
        recipe_file,
        [
            "operations.0.init=subword_mean",
            "operations.0.output_init={scheme: normal, std: 0.02}",
            "operations.0.tokens.1.init=mean",
            "operations.0.roles.pad_token=<|pad|>",
            "verify.outputs=false",
            "seed=3",
            "output=out=1",
            "revision='12'",
        ],
    )
    operation = recipe.operations[0]
    assert (operation.init, operation.output_init) == (SubwordMean(), Normal(std=0.02))
    assert operation.tokens[1].init == Mean()
    assert operation.roles == {"pad_token": "<|pad|>"}
    assert (recipe.verify.outputs, recipe.seed, recipe.output, recipe.revision) == (False, 3, "out=1", "12")


def test_an_override_may_repair_what_the_file_has_wrong(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(TEXT.replace("init: zeros\n", "init: {scheme: describ}\n").replace("verify:", "seed: x"))
    overrides = ["operations.0.init.scheme=describe", "operations.0.init.text=a gloss", "seed=1"]
    assert load_recipe(path, overrides).operations[0].init == Describe(text="a gloss")


def test_a_mapping_left_empty_is_filled(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    assert load_recipe(path, ["verify.outputs=no"]).verify.outputs is False


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("operations.0.init=men", "operations.0.init: unknown scheme 'men'; did you mean 'mean'?"),
        ("operations.0.init={scheme: normal, std: 1e-5}",
         "operations.0.init.std: must be a number, but YAML reads 1e-5 as text; write 1.0e-5"),
        ("verfy.outputs=false", "verfy: unknown field; did you mean 'verify'?"),
        ("base_model=no", 'base_model: must be text, but YAML reads no as false; quote it: "no"'),
        ("output=", "output: must be text, found nothing (null)"),
        ("operations.7.init=mean", "operations: has no item '7'; it is a list of 1, and its items count from 0"),
        ("operations.-1.init=mean", "operations: has no item '-1'; it is a list of 1, and its items count from 0"),
        ("operations.init=mean", "operations: has no item 'init'; it is a list of 1, and its items count from 0"),
        ("operations.0.init.eps=0.1", "operations.0.init: has no field 'eps'; it is the text 'zeros'"),
        ("operations.0.special_tokens.0=x", "operations.0: there is no list 'special_tokens' to override an item of"),
        ("seed=[1", "seed: not valid YAML: while parsing a flow sequence: expected ',' or ']', but got '<stream end>'"),
        ("seed=!!int 1", "seed: the tag 'tag:yaml.org,2002:int' is not allowed; quote the value if it is text that begins"
         " with !"),
        ("verify={outputs: true, outputs: false}", "verify.outputs: given a second time, after line 1"),
        ("seed", "must be a path and a value, such as operations.0.init=mean"),
        ("=3", "must be a path and a value, such as operations.0.init=mean"),
        ("verify..outputs=true", "must be a path and a value, such as operations.0.init=mean"),
    ],
)  # fmt: skip
def test_a_problem_names_the_override(recipe_file, override, expected):
    assert problems_of(recipe_file, override) == [f"override '{override}': {expected}"]


def test_problems_of_overrides_follow_those_of_lines_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(TEXT.replace("verify:", "sed: 1"))
    assert problems_of("r.yaml", "seed=x", "operations.0.init=men", "seed=2", "base_model=['a" + "x" * 100 + "']") == [
        "r.yaml:8: sed: unknown field; did you mean 'seed'?",
        "override 'seed=x': seed: must be a whole number, found the text 'x'",
        "override 'operations.0.init=men': operations.0.init: unknown scheme 'men'; did you mean 'mean'?",
        "override 'seed=2': seed is overridden a second time",
        f"override 'base_model=['a{'x' * 45}…': base_model: must be text, found a list",
    ]
