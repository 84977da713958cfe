"""A tensor that lies with another rank is computed with there; what is not asked for any more is let go."""

import gc

import pytest
import torch
from support.direct_line import DirectLine
from support.tiny import build

from graftkit.running.forward import load, undisturbed
from graftkit.running.split.crew import Crew
from graftkit.running.split.remote_tensor import Held, RemoteTensor
from graftkit.running.split.together import at_owner, parameter


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The crew of three ranks, the same parameter of a block of ranks 1 and 2, and both as they are."""
    place = tmp_path_factory.mktemp("distant") / "llama"
    build("LlamaForCausalLM", place, config_overrides={"num_hidden_layers": 4})
    with undisturbed():
        crew, whole = Crew(DirectLine(3)), load(place).model
        split = crew.load(place).model
    found = []
    for model in (split, whole):
        found += [parameter(model.model.layers[number].mlp.up_proj, "weight") for number in (1, 3)]
    return crew, *found


def norm_of(values, factor):
    return float(values.detach().double().norm()) * factor["by"]


def test_it_tells_what_it_looks_like_and_is_not_here(pair):
    crew, near, far, one, other = pair
    assert (near.location[0], far.location[0]) == (1, 2)
    assert (near.shape, near.dtype, near.stride()) == (one.shape, one.dtype, one.stride())
    assert crew.fetch(far).equal(other)
    assert "rank 1" in repr(near)


def test_operators_are_computed_there(pair):
    _, near, far, one, other = pair
    assert torch.equal(near[2:5], near[2:5])
    assert not torch.equal(near, far)
    assert (near[:3] + far[:3]).double().norm().item() == (one[:3] + other[:3]).double().norm().item()
    assert isinstance(near.T @ near, RemoteTensor)
    copy = near.clone()
    copy.mul_(2)
    assert torch.equal(copy, near * 2)
    assert torch.zeros_like(one).copy_(near).equal(one)


def test_a_function_is_run_there_in_one_message(pair):
    crew, near, _, one, _ = pair
    asked, factor = [], {"by": 2}
    ask = crew.ask
    crew.ask = lambda *message: asked.append(message[1]) or ask(*message)
    try:
        assert at_owner(norm_of, near, factor) == at_owner(norm_of, one, factor)
        with pytest.raises(KeyError):
            at_owner(norm_of, near, {})
    finally:
        del crew.ask
    assert asked == ["compute", "compute"]


def test_what_is_not_asked_for_any_more_is_let_go(pair):
    crew, near, *_ = pair
    held = crew._line.owners[1]._held._held
    before = len(held)
    made = near * 3
    assert len(held) == before + 1
    del made
    gc.collect()
    crew.figures()
    assert len(held) == before


def test_each_time_that_a_tensor_is_told_of_is_forgotten_by_itself():
    held, tensor = Held(), torch.ones(2)
    first, second = held.tell(tensor), held.tell(tensor)
    assert first.number == second.number
    held.forget([first.number])
    assert held[first.number] is tensor
    held.forget([first.number])
    assert held.tell(tensor).number != first.number
