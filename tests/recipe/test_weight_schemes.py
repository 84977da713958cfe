"""Schemes for weights as recipes write them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from graftkit.initializers.make import MAKERS
from graftkit.recipe.spec import plain
from graftkit.recipe.weight_schemes import WeightScheme

READER = TypeAdapter(WeightScheme)


def scheme_names():
    tagged = READER.core_schema
    while "choices" not in tagged:
        tagged = tagged["schema"]
    return {name.lstrip("\0") for name in tagged["choices"]}


def test_each_scheme_that_a_recipe_can_name_is_made_and_no_other():
    assert scheme_names() == set(MAKERS)


@pytest.mark.parametrize(
    "written",
    [
        "zeros", "ones", "orthogonal", "matched", "lecun_normal", "depth_scaled",
        {"scheme": "kaiming_normal", "mode": "fan_out", "nonlinearity": "relu"},
        {"scheme": "kaiming_uniform", "a": 0.5},
        {"scheme": "mup", "base_width": 256},
        {"scheme": "trunc_normal", "std": 0.02, "cut": 3.0},
    ],
)  # fmt: skip
def test_what_is_written_again_reads_as_the_same_scheme(written):
    value = READER.validate_python(written)
    again = plain(value)
    assert READER.validate_python(again) == value
    assert hash(value) == hash(READER.validate_python(again))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("xavier", "did you mean 'xavier_normal'?"),
        ("mup", "'mup' needs base_width; write {scheme: mup, base_width: ...}"),
        ("uniform", "needs a and b"),
        ({"scheme": "uniform", "a": 1.0, "b": 1.0}, "must be above a, which is 1.0, found 1.0"),
        (
            {"scheme": "kaiming_normal", "a": 0.1, "nonlinearity": "relu"},
            "has a meaning for nonlinearity: leaky_relu only",
        ),
        ({"scheme": "kaiming_normal", "nonlinearity": "gelu"}, "'leaky_relu'"),
        ({"scheme": "normal", "std": 0.0}, "greater than 0"),
        ({"scheme": "orthogonal", "std": 1.0}, "unknown field"),
    ],
)
def test_a_mistake_is_named(written, words):
    with pytest.raises(ValidationError) as error:
        READER.validate_python(written)
    assert words in str(error.value)
