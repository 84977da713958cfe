"""Combinations that break are refused before anything runs; the sound one that looks broken is explained."""

import pytest
from support.families import ROWS, build

from graftkit.engine import plan
from graftkit.errors import RecipeError
from graftkit.operations.combinations import SOUND

HEAD = {"op": "replace_head", "task": "sequence_classification", "labels": ["x", "y"]}
BLANK = {"op": "reinit", "parameters": ["model.layers.1.self_attn.o_proj.weight"], "init": "zeros"}


def lora(**fields):
    return {"op": "add_lora", "r": 2, "target_modules": ["o_proj"], **fields}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama") / "source", tokens=ROWS)


def planned(source, *operations):
    return plan({"version": 1, "base_model": str(source), "operations": list(operations), "output": "out/never"})


def notes(found):
    return [note for outcome in found.outcomes for note in outcome.notes]


def test_dora_behind_weights_made_zero_is_refused(source):
    with pytest.raises(RecipeError, match=r"operations.1: add_lora: use_dora divides .*layers.1.self_attn.o_proj.weight"):
        planned(source, BLANK, lora(use_dora=True))


def test_lora_behind_them_and_dora_elsewhere_are_not(source):
    for adapter in (lora(), lora(use_dora=True, target_modules=["q_proj"])):
        assert planned(source, BLANK, adapter).adapter is not None


def test_a_zero_head_with_a_zero_b_is_explained(source):
    assert SOUND in notes(planned(source, {**HEAD, "init": "zeros"}, lora()))
    assert SOUND not in notes(planned(source, {**HEAD, "init": "normal"}, lora()))
    assert SOUND not in notes(planned(source, lora()))
