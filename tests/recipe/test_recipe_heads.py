"""The spec of replace_head: what contradicts itself is refused at its line, all at once."""

import pytest
import yaml

from graftkit.errors import RecipeError
from graftkit.recipe import dump_recipe, json_schema, load_recipe, parse_recipe

AB = {"task": "sequence_classification", "labels": ["a", "b"]}


def recipe(**fields):
    return {"version": 1, "base_model": "a", "operations": [{"op": "replace_head", **fields}], "output": "o"}


GOOD = [
    AB,
    {**AB, "init": "zeros", "inner_init": "orthogonal", "pad_token": "<pad>", "keep_lm_head": True},
    {**AB, "init": {"scheme": "zeros", "class_prior": [0.25, 0.75]}},
    {**AB, "problem_type": "multi_label_classification", "init": {"scheme": "zeros", "class_prior": 0.01}},
    {**AB, "init": {"scheme": "normal", "target_logit_std": 0.5}},
    {
        **AB,
        "init": {"scheme": "ridge", "examples": "a.jsonl", "text": "t", "label": "l", "held_out": 0.5, "max_length": 9},
    },
    {"task": "sequence_classification", "problem_type": "regression"},
    {"task": "image_classification", "num_labels": 10, "init": {"scheme": "kaiming_normal", "nonlinearity": "relu"}},
    {"task": "question_answering"},
    {"task": "token_classification", "init": {"scheme": "ridge", "examples": "a.conll"}},
    {
        "task": "token_classification",
        "labels": ["O", "B"],
        "init": {"scheme": "lda", "examples": "a.jsonl", "text": "words"},
    },
    {"task": "reward", "pad_token": "<pad>"},
    {"task": "value_head"},
    {"task": "value_head", "init": {"scheme": "normal", "std": 0.1}},
    {"task": "masked_lm", "init": {"scheme": "trunc_normal", "std": 0.02}},
]


@pytest.mark.parametrize("fields", GOOD)
def test_what_is_written_is_read_back(fields):
    read = parse_recipe(recipe(**fields))
    assert parse_recipe(yaml.safe_load(dump_recipe(read))) == read
    jsonschema = pytest.importorskip("jsonschema")
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**AB, "num_labels": 2}, "num_labels: is redundant: labels already gives the number; leave it out"),
        ({"task": "sequence_classification"}, "sequence_classification needs labels or num_labels"),
        ({**AB, "labels": ["a", "b", "a"]}, "labels.2: the label 'a' is given a second time"),
        ({"task": "token_classification", "labels": ["a", True]}, "labels.1: must be text, found true"),
        ({**AB, "labels": ["a", True], "init": {"scheme": "zeros", "class_prior": [0.5, 0.5]}}, "labels.1: must be text, found true"),
        ({**AB, "labels": ["a", True], "init": {"scheme": "verbalizer", "words": {"a": "x", "b": "y"}}}, "labels.1: must be text, found true"),
        ({**AB, "labels": ["a"], "problem_type": "single_label_classification"}, "labels: a choice needs two labels or more"),
        ({"task": "token_classification", "num_labels": 1}, "num_labels: a choice needs two labels or more"),
        ({"task": "question_answering", "labels": ["a", "b"]}, "labels: has no meaning for question_answering, which has outputs of a fixed number"),
        ({"task": "reward", "num_labels": 1}, "num_labels: has no meaning for reward, which is one label"),
        ({"task": "value_head", "num_labels": 1}, "num_labels: has no meaning for value_head, which is one number for each token"),
        ({"task": "value_head", "pad_token": "<pad>"}, "pad_token: has no meaning for value_head, which gives each token a value of its own"),
        ({"task": "value_head", "keep_lm_head": True}, "keep_lm_head: has no meaning for value_head, which keeps the whole language model"),
        ({"task": "value_head", "inner_init": "orthogonal"}, "inner_init: has no meaning for value_head, which has no layers before its row"),
        ({"task": "value_head", "init": "orthogonal"}, "init: value_head begins with zeros or normal"),
        ({"task": "value_head", "init": {"scheme": "normal", "target_logit_std": 1.0}}, "target_logit_std: has no meaning for value_head, which has no logits"),
        ({"task": "token_classification", "num_labels": 3, "problem_type": "regression"}, "problem_type: has no effect on token_classification"),
        ({"task": "causal_lm", "keep_lm_head": True}, "keep_lm_head: has no meaning for causal_lm, whose head is a language-model head"),
        ({**AB, "init": {"scheme": "zeros", "class_prior": [0.5, 0.2]}}, "class_prior: adds up to 0.7; the shares of all labels add up to 1"),
        ({**AB, "init": {"scheme": "zeros", "class_prior": [0.5, 0.3, 0.2]}}, "class_prior: has 3 shares for 2 labels"),
        ({**AB, "init": {"scheme": "zeros", "class_prior": [0.0, 0.9995]}}, "class_prior.0: must be greater than 0"),
        ({"task": "multiple_choice", "init": {"scheme": "zeros", "class_prior": [0.5, 0.5]}}, "class_prior: has a meaning for classification into labels only"),
        ({**AB, "init": {"scheme": "normal", "std": 1.0, "target_logit_std": 1.0}}, "target_logit_std: and std set the same thing"),
        ({"task": "image_classification", "labels": ["a", "b"], "init": {"scheme": "lda", "examples": "x.csv"}}, "init: lda is for sequence_classification and token_classification into labels"),
        ({"task": "token_classification", "init": "xavier_uniform"}, "token_classification needs labels or num_labels"),
        ({**AB, "problem_type": "multi_label_classification", "init": {"scheme": "prototype", "examples": "x.csv"}}, "init: prototype is for texts with a single label; take ridge or lda"),
        ({"task": "sequence_classification", "problem_type": "regression", "init": {"scheme": "ridge", "examples": "x.csv"}}, "init: ridge is for sequence_classification and token_classification into labels"),
        ({**AB, "init": "ridge"}, "'ridge' needs examples; write {scheme: ridge, examples: ...}"),
        ({**AB, "task": "sequence_clasification"}, "did you mean 'sequence_classification'?"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(fields, message):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe(**fields))
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_labels_that_yaml_takes_for_something_else_are_one_problem(tmp_path):
    def problems(labels, extra=""):
        text = f"version: 1\nbase_model: a\noperations:\n  - op: replace_head\n    task: sequence_classification\n    {extra}\n    labels: {labels}\noutput: o\n"
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(RecipeError) as caught:
            load_recipe(tmp_path / "r.yaml")
        return [line.partition("r.yaml:")[2] for line in caught.value.problems]

    both = '7: operations.0.labels: must be text, but YAML reads yes as true, no as false; quote them: "yes", "no"'
    assert problems("[yes, no]") == [both]
    assert problems("[yes, no]", "init: {scheme: zeros, class_prior: [0.5, 0.5]}") == [both]
    assert problems("[yes, no]", "init: {scheme: ridge, examples: a.csv}") == [both]
    assert problems("\n    - maybe\n    - yes\n    - no") == [both.replace("7:", "9:")]
    alone = '7: operations.0.labels.1: must be text, but YAML reads no as false; quote it: "no"'
    assert problems("[maybe, no]") == [alone]
    assert problems("[1, 2, 3, 4, 5]") == [
        "7: operations.0.labels: must be text, but YAML reads 1 as the number 1, 2 as the number 2, 3 as the number 3,"
        ' 4 as the number 4 and 1 more; quote them: "1", "2", "3", "4"'
    ]
    assert problems("[1, a, a]") == [
        '7: operations.0.labels.0: must be text, but YAML reads 1 as the number 1; quote it: "1"',
        "7: operations.0.labels.2: the label 'a' is given a second time",
    ]
