"""A valid recipe becomes a frozen value, from a file and from a dict alike."""

import copy
import json
import pickle
from pathlib import Path

import pydantic
import pytest

from graftkit.errors import RecipeError
from graftkit.recipe import (
    ChatTemplateFile,
    Copy,
    Describe,
    ExtendVocab,
    Mean,
    MeanCov,
    Normal,
    Recipe,
    SubwordMean,
    TokenSpec,
    VerifyOptions,
    Zeros,
    load_recipe,
    parse_recipe,
)

FULL = """\
version: 1
base_model: acme/tiny-lm
revision: v1.2
seed: 7
allow_nonfinite: true
operations:
  - op: extend_vocab
    tokens: ["alpha-ketoglutarate", {content: "bioRxiv", init: subword_mean, output_init: mean, single_word: true}]
    special_tokens: ["<|tool_call|>", {content: "<|tool_result|>", init: {scheme: describe, text: a tool's result}}]
    roles: {pad_token: "<|pad|>"}
    init: {scheme: copy, token: "the"}
    output_init: {scheme: normal, std: 0.02}
    pad_to_multiple_of: 64
    chat_template: {file: chat.jinja}
verify: {outputs: false}
output: out/model
"""

FULL_VALUE = Recipe(
    version=1,
    base_model="acme/tiny-lm",
    revision="v1.2",
    seed=7,
    allow_nonfinite=True,
    operations=(
        ExtendVocab(
            tokens=(
                TokenSpec(content="alpha-ketoglutarate"),
                TokenSpec(content="bioRxiv", init=SubwordMean(), output_init=Mean(), single_word=True),
            ),
            special_tokens=(
                TokenSpec(content="<|tool_call|>"),
                TokenSpec(content="<|tool_result|>", init=Describe(text="a tool's result")),
            ),
            roles={"pad_token": "<|pad|>"},
            init=Copy(token="the"),
            output_init=Normal(std=0.02),
            pad_to_multiple_of=64,
            chat_template=ChatTemplateFile(file="chat.jinja"),
        ),
    ),
    verify=VerifyOptions(outputs=False),
    output="out/model",
)


def with_operation(**fields):
    return {
        "version": 1,
        "base_model": "a",
        "operations": [{"op": "extend_vocab", "tokens": ["x"], **fields}],
        "output": "o",
    }


def test_every_field_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(FULL, encoding="utf-8")
    assert load_recipe(path) == load_recipe(str(path)) == FULL_VALUE


def test_defaults():
    recipe = parse_recipe(with_operation())
    assert (recipe.revision, recipe.seed, recipe.allow_nonfinite, recipe.verify) == (None, 0, False, VerifyOptions())
    assert recipe.verify.outputs is True
    operation = recipe.operations[0]
    assert operation == ExtendVocab(tokens=("x",))
    assert (operation.init, operation.output_init, operation.chat_template) == (Mean(), None, None)
    assert operation.pad_to_multiple_of is None
    assert dict(operation.roles) == {}


@pytest.mark.parametrize(
    ("written", "scheme"),
    [
        ("mean", Mean()),
        ({"scheme": "mean"}, Mean()),
        ("subword_mean", SubwordMean()),
        ({"scheme": "describe", "text": "a gloss"}, Describe(text="a gloss")),
        ({"scheme": "copy", "token": "the"}, Copy(token="the")),
        ("mean_cov", MeanCov(eps=1e-5)),
        ({"scheme": "mean_cov", "eps": 1}, MeanCov(eps=1.0)),
        ("normal", Normal(std=None)),
        ({"scheme": "normal", "std": 0.5}, Normal(std=0.5)),
        ("zeros", Zeros()),
        (Zeros(), Zeros()),
    ],
)
def test_a_scheme_is_a_word_or_a_mapping(written, scheme):
    recipe = parse_recipe(with_operation(init=written, tokens=[{"content": "x", "output_init": written}]))
    assert recipe.operations[0].init == scheme
    assert recipe.operations[0].tokens[0].output_init == scheme


def test_specs_may_stand_for_mappings_and_paths_for_text(tmp_path):
    data = {
        "version": 1,
        "base_model": Path("models/a"),
        "operations": (ExtendVocab(tokens=[TokenSpec(content="x")]),),
        "verify": VerifyOptions(outputs=False),
        "output": tmp_path,
    }
    recipe = parse_recipe(data)
    assert (recipe.base_model, recipe.output) == (str(Path("models/a")), str(tmp_path))
    assert recipe.operations == (ExtendVocab(tokens=("x",)),)
    assert parse_recipe(recipe) is recipe


def test_a_recipe_is_frozen_hashable_and_copied_whole():
    assert hash(FULL_VALUE) == hash(copy.deepcopy(FULL_VALUE))
    assert pickle.loads(pickle.dumps(FULL_VALUE)) == FULL_VALUE  # noqa: S301 - our own bytes
    assert {Mean(): 1}[Mean()] == 1
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        FULL_VALUE.seed = 8
    with pytest.raises(TypeError):
        FULL_VALUE.operations[0].roles["pad_token"] = "x"


@pytest.mark.filterwarnings("error")
def test_pydantic_writes_it_too():
    assert parse_recipe(FULL_VALUE.model_dump()) == FULL_VALUE
    assert Recipe.model_validate(parse_recipe(json.loads(FULL_VALUE.model_dump_json()))) == FULL_VALUE


def test_the_data_of_the_caller_stay_as_they_are():
    data = with_operation(init="mean", roles={"pad_token": "<pad>"})
    before = copy.deepcopy(data)
    recipe = parse_recipe(data)
    assert data == before
    data["operations"][0]["roles"]["pad_token"] = "changed"
    assert recipe.operations[0].roles == {"pad_token": "<pad>"}


def test_a_role_may_name_one_of_the_tokens():
    operation = parse_recipe(with_operation(special_tokens=["<pad>"], roles={"pad_token": "<pad>"})).operations[0]
    assert operation.roles == {"pad_token": "<pad>"}


def test_what_nests_without_end_is_refused():
    endless: dict[str, object] = {}
    endless["verify"] = endless
    with pytest.raises(RecipeError, match="^nested deeper than 64 levels$"):
        parse_recipe(endless)
