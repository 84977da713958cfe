"""Combinations that break are refused before anything runs; the sound one that looks broken is explained."""

import pytest
import torch
from support.families import ROWS, build

from graftkit.checkpoint.tensors import Zeros
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
    with pytest.raises(
        RecipeError, match=r"operations.1: add_lora: divides each row by its norm, .*layers.1.self_attn.o_proj.weight"
    ):
        planned(source, BLANK, lora(use_dora=True))


def zeros(*names, block="model.layers.1"):
    return {"op": "reinit", "parameters": [f"{block}.{name}" for name in names], "init": "zeros"}


@pytest.mark.parametrize(
    "operations",
    [
        (zeros("mlp.gate_proj.weight", "mlp.up_proj.weight"),),
        (zeros("mlp.up_proj.weight", "mlp.down_proj.weight"),),
        (zeros("self_attn.q_proj.weight", "self_attn.k_proj.weight"),),
        (zeros("self_attn.v_proj.weight"), zeros("self_attn.o_proj.weight")),
    ],
)
def test_zeros_that_wait_for_each_other_are_refused(source, operations):
    with pytest.raises(RecipeError, match=f"operations.{len(operations) - 1}.init: from these zeros no gradient"):
        planned(source, *operations)


@pytest.mark.parametrize(
    "operations",
    [
        (zeros("self_attn.o_proj.weight", "mlp.down_proj.weight"),),
        (zeros("self_attn.q_proj.weight", "self_attn.o_proj.weight"),),
        (zeros("mlp.up_proj.weight"), {**zeros("mlp.up_proj.weight"), "init": "normal"}, zeros("mlp.down_proj.weight")),
    ],
)
def test_zeros_that_move_one_after_the_other_are_not(source, operations):
    assert planned(source, *operations).result is not None


def test_zeros_are_known_without_being_made(source):
    result = planned(source, BLANK).result
    assert isinstance(result.tensors["model.layers.1.self_attn.o_proj.weight"], Zeros)


def test_a_bias_between_two_zeros_keeps_them_alive(tmp_path):
    source = build("gpt2", tmp_path / "source", tokens=ROWS)
    names = ("mlp.c_fc.weight", "mlp.c_proj.weight")
    assert planned(source, zeros(*names, block="transformer.h.1")).result is not None
    with pytest.raises(RecipeError, match=r"transformer.h.1.mlp.c_fc.bias, .*c_fc.weight, .*c_proj.weight;"):
        planned(source, zeros(*names, "mlp.c_fc.bias", block="transformer.h.1"))


def test_lora_behind_them_and_dora_elsewhere_are_not(source):
    for adapter in (lora(), lora(use_dora=True, target_modules=["q_proj"])):
        assert planned(source, BLANK, adapter).adapter is not None


def test_a_zero_head_with_a_zero_b_is_explained(source):
    assert SOUND in notes(planned(source, {**HEAD, "init": "zeros"}, lora()))
    assert SOUND not in notes(planned(source, {**HEAD, "init": "normal"}, lora()))
    assert SOUND not in notes(planned(source, lora()))


@pytest.mark.parametrize("inner", ["zeros", {"scheme": "constant", "value": 0}])
def test_a_zero_projection_behind_a_zero_layer_is_refused(tmp_path, inner):
    source = build("roberta", tmp_path / "source", tokens=ROWS)
    with pytest.raises(
        RecipeError, match=r"'classifier.dense.weight' and 'classifier.out_proj.weight' would both be zero"
    ):
        planned(source, {**HEAD, "init": "zeros", "inner_init": inner})
    for sound in ({"init": "normal", "inner_init": inner}, {"init": "zeros"}):
        assert planned(source, {**HEAD, **sound}).result is not None


def test_one_layer_of_a_pair_may_be_zero_and_both_never_train():
    """What is refused and what is not, by the gradients of a real head."""
    head = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Tanh(), torch.nn.Linear(4, 2, bias=False))
    for zeroed, alive in (((0,), True), ((2,), True), ((0, 2), False)):
        for index in (0, 2):
            torch.nn.init.normal_(head[index].weight, generator=torch.Generator().manual_seed(index))
        for index in zeroed:
            torch.nn.init.zeros_(head[index].weight)
        loss = torch.nn.functional.cross_entropy(head(torch.randn(8, 4)), torch.arange(8) % 2)
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        assert any(bool(gradient.any()) for gradient in gradients) == alive
