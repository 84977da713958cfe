"""LSUV on networks that plain schemes leave vanishing or exploding."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftkit.initializers.lsuv import lsuv


def deep(width=64, depth=20, activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())))


@pytest.fixture
def batch():
    return torch.randn(128, 64, generator=torch.Generator().manual_seed(1)) * 3 + 0.5


def variances(module, batch):
    found, value = [], batch
    with torch.no_grad():
        for layer in module:
            value = layer(value)
            if isinstance(layer, nn.Linear):
                found.append(float(value.var()))
    return found


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_every_layer_of_a_deep_network_gets_unit_variance(activation, batch):
    module = deep(activation=activation)
    assert min(variances(module, batch)) < 0.1
    done = lsuv(module, batch)
    assert all(abs(variance - 1) < 0.1 for variance in variances(module, batch))
    assert list(done) == [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    assert [round(item.after, 4) for item in done.values()] == [round(v, 4) for v in variances(module, batch)]
    assert not any(layer.bias.any() for layer in module if isinstance(layer, nn.Linear))


def test_weights_are_scaled_orthogonal_maps_and_the_same_for_the_same_seed(batch):
    first, second, other = deep(depth=3), deep(depth=3), deep(depth=3)
    lsuv(first, batch)
    torch.manual_seed(5)
    lsuv(second, batch)
    lsuv(other, batch, seed=1)
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    for layer in (first[0], first[2]):
        singular = torch.linalg.svdvals(layer.weight.detach())
        assert torch.allclose(singular, singular[0].expand_as(singular), rtol=1e-4)


def test_order_is_that_of_the_forward_and_batches_may_be_mappings(batch):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = Conv1D(8, 16)
            self.first = nn.Linear(64, 16)
            self.dropout = nn.Dropout(0.9)

        def forward(self, x, scale):
            return self.second(self.dropout(torch.relu(self.first(x * scale))))

    module = Backwards().train()
    done = lsuv(module, {"x": batch, "scale": 10.0})
    assert list(done) == ["first", "second"]
    assert all(abs(item.after - 1) < 0.1 for item in done.values())
    assert module.training
    assert module.dropout.training


def test_convolutions(batch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))
    done = lsuv(module, batch.view(128, 1, 8, 8))
    assert all(abs(item.after - 1) < 0.1 for item in done.values())


def test_what_no_scale_can_mend_is_an_error():
    with pytest.raises(ValueError, match="the outputs of 0 have variance 0 on this batch"):
        lsuv(deep(depth=2), torch.zeros(8, 64))
    with pytest.raises(ValueError, match="variance nan"):
        lsuv(deep(depth=2), torch.full((8, 64), float("nan")))

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.first(x)

    with pytest.raises(ValueError, match="the forward does not reach second"):
        lsuv(Unused(), torch.randn(8, 64))


def test_a_layer_that_does_not_settle_is_an_error(batch):
    class Restless(nn.Linear):
        def forward(self, x):
            return torch.randn(16, 4) * torch.randint(2, 9, ())

    with pytest.raises(ValueError, match="still have variance .* after 3 forwards"):
        lsuv(nn.Sequential(Restless(64, 4)), batch, tolerance=1e-9, most=3)
