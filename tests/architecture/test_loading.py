"""What is said of a load without asking transformers is what transformers says, also of tensors that do not fit."""

import dataclasses

import pytest
from support.families import FAMILIES, build

from graftkit.architecture.skeleton import LoadingInfo, build_skeleton
from graftkit.checkpoint.checkpoint import Checkpoint


def dropped(tensors):
    return dict(list(tensors.items())[1:])


def stranger(tensors):
    return {**tensors, "nobody.weight": next(iter(tensors.values()))}


def longer(tensors):
    name, tensor = next((n, t) for n, t in tensors.items() if len(t.shape) == 2)
    return {**tensors, name: dataclasses.replace(tensor, shape=(tensor.shape[0] + 1, tensor.shape[1]))}


def twice(tensors):
    """Under a second name that is read as the first."""
    name = next(n for n in tensors if n.endswith(".weight"))
    return {**tensors, f"model.{name}": tensors[name]}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_of_a_load_is_what_the_loader_says(family, tmp_path):
    checkpoint = Checkpoint.open(str(build(family, tmp_path)))
    skeleton = build_skeleton(checkpoint.config)
    for planted in (dict, dropped, stranger, longer, twice):
        tensors = planted(checkpoint.tensors)
        assert skeleton.loading(tensors) == skeleton.ask_loader(tensors), planted
    if family == "llama":
        assert skeleton.loading(checkpoint.tensors) == LoadingInfo()
        assert skeleton.loading(dropped(checkpoint.tensors)).missing
        assert skeleton.loading(stranger(checkpoint.tensors)).unexpected
        assert skeleton.loading(longer(checkpoint.tensors)).mismatched
