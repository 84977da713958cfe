"""One target of each kind is adapted, its name stands for the others; what a name or a bias says of one keeps it apart."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from graftkit.architecture.peft.one_of_each import one_of_each


def adapted(*modules, **fields):
    """What stands for what, and the names that hold factors; peft counts every module as a target."""
    net = torch.nn.Sequential(*modules)
    config = LoraConfig(r=2, target_modules=[str(index) for index in range(len(modules))], **fields)
    with one_of_each() as others:
        model = get_peft_model(net, config)
    assert len(model.base_model.targeted_module_names) == len(modules)
    names = {name.split(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    return dict(others), names


def linear(width=4, **options):
    return torch.nn.Linear(4, width, **options)


def test_the_first_of_a_kind_stands_for_the_others_and_only_within_it():
    assert adapted(linear(), linear(), linear(6), linear()) == ({"0": ["1", "3"]}, {"0", "2"})
    model = get_peft_model(torch.nn.Sequential(linear(), linear()), LoraConfig(target_modules=["0", "1"]))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2


def test_the_registry_is_as_it_was_after_a_refusal():
    with pytest.raises(ValueError, match="supported"):
        adapted(linear(), torch.nn.Dropout())
    model = get_peft_model(torch.nn.Sequential(linear(), linear()), LoraConfig(target_modules=["0", "1"]))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2


@pytest.mark.parametrize(
    "pair",
    [
        (linear(), linear(6)),
        (linear(), linear(bias=False)),
        (linear(), linear(dtype=torch.bfloat16)),
        (torch.nn.Conv1d(4, 8, 3), torch.nn.Conv1d(8, 8, 3, groups=2)),  # weights of one shape, inputs of two
        (torch.nn.Embedding(4, 4), linear(bias=False)),
    ],
)
def test_kinds_that_differ_are_told_apart(pair):
    assert adapted(*pair) == ({}, {"0", "1"})


@pytest.mark.parametrize("fields", [{"rank_pattern": {"1": 1}}, {"alpha_pattern": {"1": 1}}, {"bias": "all"}])
def test_a_config_that_treats_modules_by_name_adapts_each(fields):
    assert adapted(linear(), linear(), **fields) == ({}, {"0", "1"})
