"""What people look for under other names: the name that a recipe has for it, or the tool that does it."""

import pytest
from support.command import assert_one_line, here
from support.recipes import recipe

from graftkit.cli import _parser
from graftkit.drafting.kinds import KINDS
from graftkit.errors import RecipeError
from graftkit.recipe import Recipe, parse_recipe
from graftkit.recipe.operations import OPERATIONS
from graftkit.recipe_file.other_names import _SYNONYMS, ELSEWHERE, elsewhere
from graftkit.recipe_file.wording import did_you_mean
from graftkit.usage import EXAMPLES, commands_of

LORA = {"op": "add_lora"}
TOKENS = {"op": "extend_vocab", "tokens": ["x"]}


def problem_of(operation, **others):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe("a", "o", operation, **others))
    (line,) = [one for one in caught.value.problems if "required field" not in one]
    return line


@pytest.mark.parametrize(
    ("operation", "start", "words"),
    [
        ({**LORA, "lr": 1e-4}, "operations.0.lr: unknown field; ", "belongs to the trainer's own configuration"),
        ({**LORA, "epochs": 3}, "operations.0.epochs: unknown field; ", "belongs to the trainer"),
        ({**TOKENS, "batch-size": 3}, "operations.0.batch-size: unknown field; ", "belongs to the trainer"),
        ({**LORA, "load_in_4bit": True}, "operations.0.load_in_4bit: unknown field; ", "bitsandbytes"),
        ({"op": "quantize"}, "operations.0.op: unknown operation 'quantize'; ", "GPTQModel"),
        ({"op": "slerp"}, "operations.0.op: unknown operation 'slerp'; ", "mergekit merges several models"),
        ({"op": "gguf"}, "operations.0.op: unknown operation 'gguf'; ", "convert_hf_to_gguf"),
        ({"op": "export"}, "operations.0.op: unknown operation 'export'; ", "optimum-cli export onnx"),
        ({**LORA, "rank": 8}, "operations.0.rank: unknown field; ", "did you mean 'r'?"),
        ({**LORA, "alpha": 8}, "operations.0.alpha: unknown field; ", "did you mean 'lora_alpha'?"),
        ({**LORA, "rslora": True}, "operations.0.rslora: unknown field; ", "did you mean 'use_rslora'?"),
        ({"op": "lora"}, "operations.0.op: unknown operation 'lora'; ", "did you mean 'add_lora'?"),
        (
            {"op": "merge"},
            "operations.0.op: unknown operation 'merge'; ",
            "merge_adapter folds an adapter into its base",
        ),
        ({"op": "merge_lora"}, "operations.0.op: unknown operation 'merge_lora'; ", "did you mean 'merge_adapter'?"),
        ({"op": "dequantize"}, "operations.0.op: unknown operation 'dequantize'; ", "did you mean 'convert'?"),
        ({"op": "classifier"}, "operations.0.op: unknown operation 'classifier'; ", "did you mean 'replace_head'?"),
        ({**TOKENS, "rank": 8}, "operations.0.rank: unknown field; ", "the fields here are: op, tokens"),
    ],
)
def test_a_field_or_operation_that_is_called_otherwise(operation, start, words):
    line = problem_of(operation)
    assert line.startswith(start)
    assert words in line


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("learning_rate", "belongs to the trainer"),
        ("quantization_config", "bitsandbytes"),
        ("models", "mergekit"),
        ("push_to_hub", "hf upload"),
    ],
)
def test_a_field_of_the_recipe(field, words):
    assert words in problem_of(TOKENS, **{field: 1})


def test_a_field_of_peft_s_config_too(demo, tmp_path):
    (tmp_path / "r.yaml").write_text(
        f"version: 1\nbase_model: {demo}\noutput: o\noperations: [{{op: add_lora, config: {{lr: 1}}}}]\n"
    )
    assert_one_line(here("plan", tmp_path / "r.yaml"), 2, "'lr' is not a field of LORA; it belongs to the trainer")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantize", "model"], "'quantize' is no command of graftkit; bitsandbytes quantizes"),
        (["merge-models"], "mergekit merges several models"),
        (["export"], "convert_hf_to_gguf"),
        (["lora", "x"], "add_lora is an operation of a recipe, and graftkit init MODEL writes a recipe to begin with"),
        (["extend_vocab"], "extend_vocab is an operation of a recipe"),
        (["recipe.yaml"], "to run a recipe: graftkit apply recipe.yaml"),
        (["aply", "recipe.yaml"], "did you mean 'apply'?"),
        (["zzzz"], "its commands are: init, validate"),
        (["\x1b[31m"], r"'\x1b[31m' is no command"),
        (
            ["apply", "r.yaml", "--learning-rate", "3"],
            "unrecognized arguments: --learning-rate; it belongs to the trainer",
        ),
        (["apply", "r.yaml", "--load-in-4bit=true"], "bitsandbytes"),
    ],
)
def test_a_command_or_option_that_is_called_otherwise(arguments, words):
    assert_one_line(here(*arguments), 2, words)


def test_what_stands_elsewhere_is_no_field_and_no_operation():
    """Else a slip of the pen would send people to another tool."""
    assert not ELSEWHERE.keys() & {*OPERATIONS, *Recipe.model_fields, *KINDS}
    assert {*_SYNONYMS} - {*OPERATIONS} == {
        name for name in _SYNONYMS if name not in OPERATIONS and not elsewhere(name)
    }


def test_a_name_is_no_slip_of_a_single_letter():
    assert did_you_mean("revision", ["r", "lora_alpha"]) is None
    assert did_you_mean("special", ["special_tokens"]) == "special_tokens"


def test_every_command_s_help_shows_its_use_and_the_help_of_all_the_exit_codes():
    commands = commands_of(_parser())
    assert {*EXAMPLES} - {""} == {*commands}
    for name, parser in commands.items():
        text = " ".join(parser.format_help().split())
        assert all(line.startswith(f"graftkit {name}") and line in text for line in EXAMPLES[name])
    assert all(f"\n  {code}" in here("--help").stdout for code in (0, 1, 2, 3, 4, 5, 6, 7, 70, 129))
