"""The recipe that upcycles, through the command line, then loaded as a trainer does it."""

import json

import pytest
from support import recipes
from support.command import real

pytestmark = pytest.mark.numerical


def test_the_recipe_gives_a_mixture_that_does_what_the_dense_model_did(tmp_path):
    done = real("apply", "recipes/upcycle.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for words in (
        "verified (exact): hidden states and logits, for every input",
        "note: LlamaForCausalLM becomes MixtralForCausalLM: 4 experts in each layer, each token sent to 2",
        "27 more are copies of others",
    ):
        assert words in text, words
    model, info = recipes.load(tmp_path / "out")
    assert not info["missing_keys"]
    assert model.config.num_local_experts == 4
    recipes.assert_equal_in_float64(json.loads((tmp_path / "out/graft_report.json").read_text()))
