"""What writes to the residual stream, found without a weight, is what makes a real block with random values the identity."""

import json

import pytest
import torch
from support.families import FAMILIES, _model
from torch.utils._pytree import tree_leaves

from graftkit.architecture.blocks.depth import rearranged
from graftkit.architecture.blocks.identity import find_writers
from graftkit.architecture.layers import layer_list
from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.zero_flow import never_learning
from graftkit.errors import InputRejected

#: Family -> the last words of what is zero. The place of a norm decides, not a name: T5's are pre-norm, BERT's are not.
WRITERS = {
    "llama": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "gemma2": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "cohere": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
    "mixtral": {"self_attn.o_proj.weight", "mlp.experts.down_proj"},
    "gpt2": {f"{part}.c_proj.{leaf}" for part in ("attn", "mlp") for leaf in ("weight", "bias")},
    "gpt_neox": {f"{part}.{leaf}" for part in ("attention.dense", "mlp.dense_4h_to_h") for leaf in ("weight", "bias")},
    "t5": {"layer.0.SelfAttention.o.weight", "layer.1.EncDecAttention.o.weight", "layer.2.DenseReluDense.wo.weight"},
    "llava": {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
}
SLOW = ("cohere", "gpt_neox", "llava")  # they show nothing that the others do not
POST_NORM = ("bert",)


def grown(family):
    """The config with one more block at place 1, its skeleton, and where its blocks are."""
    model = _model(family, 64)
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}
    old = build_skeleton(config)
    layers = layer_list(old)
    order = (0, *range(layers.count))
    changed, new, _ = rearranged(config, old, layers, order, copies=(1,))
    return changed, new, layers


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES if name in WRITERS],
)
def test_the_last_to_run_are_found_and_all_of_them_learn(family):
    _, skeleton, layers = grown(family)
    found = find_writers(skeleton, layers, 1)
    assert {name.removeprefix(layers.prefix(1)) for name in found} == WRITERS[family]
    assert never_learning(skeleton, found) == ()


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "t5"])
def test_a_real_block_is_the_identity_with_them_at_zero_and_with_none_fewer(family):
    """Values are random, and each writer that is given back changes the outputs."""
    config, skeleton, layers = grown(family)
    found = find_writers(skeleton, layers, 1)
    torch.manual_seed(0)
    model = type(skeleton.model)(type(skeleton.model.config)(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape) + (parameter.ndim == 1))
    inputs = {"input_ids": torch.arange(5, 13)[None]}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.arange(3, 9)[None]

    def stream():
        seen = {}
        block = model.get_submodule(layers.prefix(1)[:-1])
        hooks = [
            block.register_forward_pre_hook(
                lambda _, args, given: seen.update(old=args[0] if args else given["hidden_states"]), with_kwargs=True
            ),
            block.register_forward_hook(lambda _, __, made: seen.update(new=tree_leaves(made)[0])),
        ]
        with torch.no_grad():
            model(**inputs, use_cache=False)
        for hook in hooks:
            hook.remove()
        return torch.equal(seen["old"], seen["new"])

    kept = {name: model.get_parameter(name).clone() for name in found}
    with torch.no_grad():
        for name in found:
            model.get_parameter(name).zero_()
        assert stream()
        for name, value in kept.items():
            model.get_parameter(name).copy_(value)
            assert not stream(), name
            model.get_parameter(name).zero_()
    outputs = tree_leaves(model(**inputs, use_cache=False).to_tuple())
    sum((value * torch.randn_like(value)).sum() for value in outputs if value.requires_grad).backward()
    assert all(bool(model.get_parameter(name).grad.any()) for name in found)


@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_on_the_stream_leaves_no_identity(family):
    _, skeleton, layers = grown(family)
    with pytest.raises(InputRejected, match="no zeros make a block the identity.*use init: copy"):
        find_writers(skeleton, layers, 1)


def test_a_class_that_does_not_run_without_values_is_refused_with_what_it_says():
    _, skeleton, layers = grown("llama")

    def forward(**_):
        raise RuntimeError("a value is needed")

    skeleton.model.forward = forward
    with pytest.raises(
        InputRejected, match="its blocks cannot be tried without weights: RuntimeError: a value is needed"
    ):
        find_writers(skeleton, layers, 1)


@pytest.mark.parametrize("change", ["scaled", "swapped", "in place"])
def test_what_is_done_to_the_stream_beside_adding_is_seen(change):
    """A block that scales, mixes or overwrites what it is given is no identity, whatever is zero."""
    _, skeleton, layers = grown("llama")
    block = skeleton.model.get_submodule(layers.prefix(1)[:-1])
    inner = block.forward
    changes = {"scaled": lambda x: x * 2, "swapped": lambda x: x.flip(1), "in place": lambda x: x.mul_(2)}

    def forward(hidden_states, **others):
        return changes[change](inner(hidden_states, **others))

    block.forward = forward
    with pytest.raises(InputRejected, match="no zeros make a block the identity"):
        find_writers(skeleton, layers, 1)
