"""Zeros that never learn, found without a weight, are those that real training leaves without a gradient."""

import itertools
import json
import random

import pytest
import torch
from support.families import FAMILIES, _model
from torch.utils._pytree import tree_leaves

from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.zero_flow import STEPS, KnownZeros, never_learning

#: Pairs of matrices of the last block that are tried in each family.
PAIRS = 8


def with_gradient(model, steps):
    """Names of the parameters that have a gradient in one of ``steps`` steps of AdamW."""
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 2, 3]])
    optimiser, found = torch.optim.AdamW(model.parameters(), 1e-3), set()
    for _ in range(steps):
        generator = torch.Generator().manual_seed(1)
        outputs = tree_leaves(model(**inputs, use_cache=False).to_tuple())
        loss = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in outputs if x.requires_grad)
        optimiser.zero_grad()
        loss.backward()
        found |= {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        optimiser.step()
    return found


def stuck_in_training(model, start, zeros):
    model.load_state_dict(start)
    reached = with_gradient(model, 1)
    model.load_state_dict(start)
    with torch.no_grad():
        for name in zeros:
            model.get_parameter(name).zero_()
    return (reached & zeros) - with_gradient(model, STEPS)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llava"])
def test_what_is_found_is_what_training_leaves_without_a_gradient(family):
    torch.manual_seed(0)
    model = _model(family, 64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape) + (parameter.ndim == 1) * (not name.endswith("bias")))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}
    decoder = [n for n, p in model.named_parameters() if p.ndim > 1 and "decoder" in n and ".layers.1." in n]
    names = decoder or [n for n, p in model.named_parameters() if p.ndim > 1 and ".1." in n]
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    skeleton, found = build_skeleton(config), []
    pairs = list(itertools.combinations(names, 2))
    for pair in random.Random(0).sample(pairs, min(PAIRS, len(pairs))):
        zeros = {*pair, *(name.removesuffix("weight") + "bias" for name in pair)} & {*pair, *biases}
        found.append(set(never_learning(skeleton, zeros)))
        assert found[-1] == stuck_in_training(model, start, zeros), pair
    assert any(found)
    assert not all(found)


@pytest.mark.parametrize(
    "write", [lambda x: x.add_(1), lambda x: x[0].copy_(torch.ones(2)), lambda x: x.view(4).fill_(3)]
)
def test_what_is_written_into_is_zero_no_longer(write):
    """Nor are the views of it; what was made zero from it before stays so."""
    weight, other = torch.zeros(2, 2), torch.ones(2, 2)
    with KnownZeros(iter([weight])) as known:
        product = weight @ other
        view, made = product.t(), product * 2
        assert all(known.holds(value) for value in (product, view, made))
        write(product)
        assert not any(known.holds(value) for value in (product, view, view @ other))
        assert known.holds(made)


def test_a_class_that_does_not_run_without_values_says_nothing():
    config = json.loads(_model("llava", 64).config.to_json_string(use_diff=False)) | {"architectures": ["LlavaModel"]}
    skeleton = build_skeleton(config)
    skeleton.model.forward = None
    assert never_learning(skeleton, list(skeleton.shapes)) == ()
