"""Fans of every layout, by counting what a unit input reaches in the module that stores its weight so."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftkit.initializers.fans import CONV1D, EMBEDDING, LINEAR, Fans, Layout, conv, experts, fans, part_shapes


def counted(module, example):
    """Fans of a module of ones: the sum of one output is the fan in, the sum of one input's gradient the fan out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0 if parameter.ndim == 1 else 1)
    example = example.requires_grad_()
    out = module(example)
    out.sum().backward()
    return Fans(int(out.max()), int(example.grad.max()))


@pytest.mark.parametrize(
    ("module", "example", "layout"),
    [
        (nn.Linear(12, 20), torch.ones(1, 12), LINEAR),
        (Conv1D(20, 12), torch.ones(1, 12), CONV1D),
        (nn.Conv1d(6, 8, 3), torch.ones(1, 6, 9), conv()),
        (nn.Conv2d(6, 8, 3), torch.ones(1, 6, 9, 9), conv()),
        (nn.Conv2d(6, 9, (3, 2), groups=3), torch.ones(1, 6, 9, 9), conv(groups=3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_fans_are_what_a_module_of_ones_sums(module, example, layout):
    assert fans(tuple(module.weight.shape), layout) == (counted(module, example),)


def test_a_lookup_sums_one_term():
    table = nn.Embedding(50, 8)
    assert fans(tuple(table.weight.shape), EMBEDDING) == (Fans(1, 8),)


def test_fused_maps_have_their_own_fans():
    qkv = Layout(parts=(32, 8, 8))
    assert fans((48, 64), qkv) == (Fans(64, 32), Fans(64, 8), Fans(64, 8))
    assert fans((64, 48), Layout(output=1, input=0, parts=(32, 8, 8))) == fans((48, 64), qkv)
    per_head = Layout(parts=(4, 4, 4), repeats=4)
    assert fans((48, 64), per_head) == (Fans(64, 16),) * 3
    assert part_shapes((48, 64), per_head) == [(16, 64)] * 3


def test_experts_have_the_fans_of_one_expert():
    assert fans((7, 20, 12), experts()) == (Fans(12, 20),)
    assert fans((7, 12, 20), experts(transposed=True)) == (Fans(12, 20),)
    assert fans((7, 12, 20), experts(transposed=True, parts=(10, 10))) == (Fans(12, 10),) * 2


@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        ((8,), LINEAR, "no matrix"),
        ((8, 4), experts(), "no matrix"),
        ((9, 4), Layout(parts=(4, 4)), "do not fill"),
    ],
)
def test_what_has_no_fans_is_an_error(shape, layout, words):
    with pytest.raises(ValueError, match=words):
        fans(shape, layout)
