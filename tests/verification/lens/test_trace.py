"""The first module at which two models differ is named, with the tensor of its own that differs, however small the change."""

import copy
import json

import pytest
import torch
from support.families import FAMILIES, build
from support.lens import flip, opened, probe

from graftkit.architecture.correspondence import IDENTITY
from graftkit.running.float64 import float64
from graftkit.running.forward import outputs_of
from graftkit.verification.lens.trace import Trace, compare, own_differences, record, tokens_that_fit

#: Unit roundoff of float64 times more terms than any sum of these models has.
THRESHOLD = 4096 * torch.finfo(torch.float64).eps / 2


def traced(source, result, extra_inputs=frozenset(), change=IDENTITY):
    trace = Trace()
    with float64(source):
        kept, _ = record(source, lambda: outputs_of(source, probe(), extra_inputs))
    with float64(result):
        compare(result, lambda: outputs_of(result, probe(), extra_inputs), kept, trace, "random ids", change)
    return trace


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        family: opened(build(family, tmp_path_factory.mktemp(family), dtype="bfloat16"))[0]
        for family in ("llama", "bert")
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_models_differ_nowhere_and_a_flipped_ulp_is_named(family, tmp_path):
    source, extra_inputs = opened(build(family, tmp_path, dtype="bfloat16"))
    result = copy.deepcopy(source)
    clean = traced(source, result, extra_inputs)
    assert clean.first(0.0) is None
    assert len(clean.calls) > 10
    name, weight = _middle(result)
    flip(weight, *(size // 2 for size in weight.shape))
    first = traced(source, result, extra_inputs).first(THRESHOLD)
    assert first.name == name.rpartition(".")[0]
    assert own_differences(source, result, first.name) == (name,)


def _middle(model):
    """A matrix in the last block of the text model: one that every token passes through."""
    blocks = [
        (name, value) for name, value in model.named_parameters()
        if value.ndim >= 2 and ".1." in name and "vision" not in name and "expert" not in name and "relative" not in name
    ]  # fmt: skip
    return blocks[len(blocks) // 2]


def test_what_softmax_cancels_is_seen_where_it_arises(models):
    source = models["bert"]
    result = copy.deepcopy(source)
    flip(result.bert.encoder.layer[0].attention.self.key.bias, 3)
    trace = traced(source, result)
    assert trace.first(THRESHOLD).name == "bert.encoder.layer.0.attention.self.key"
    assert trace.by_module()["bert.encoder.layer.0"] < THRESHOLD


def test_a_difference_without_a_tensor_is_named_by_its_module(models):
    source = models["llama"]
    result = copy.deepcopy(source)
    result.model.layers[1].post_attention_layernorm.variance_epsilon *= 1.001
    first = traced(source, result).first(THRESHOLD)
    assert first.name == "model.layers.1.post_attention_layernorm"
    assert own_differences(source, result, first.name) == ()


def test_a_wrong_shape_is_a_difference(models):
    source = models["llama"]
    result = copy.deepcopy(source)
    result.model.layers[0].mlp.gate_proj = torch.nn.Linear(32, 60, bias=False, dtype=torch.bfloat16)
    trace = Trace()
    with float64(source):
        kept, _ = record(source, lambda: outputs_of(source, probe()))
    with float64(result), pytest.raises(RuntimeError):
        compare(result, lambda: outputs_of(result, probe()), kept, trace, "random ids")
    assert trace.first(THRESHOLD).name == "model.layers.0.mlp.gate_proj"
    assert "gives [3, 12, 60], gave [3, 12, 64]" in trace.first(THRESHOLD).unlike


def test_nan_is_the_largest_difference(models):
    source = models["llama"]
    result = copy.deepcopy(source)
    result.model.layers[1].self_attn.k_proj.weight.data[0, 0] = torch.nan
    first = traced(source, result).first(THRESHOLD)
    assert first.name == "model.layers.1.self_attn.k_proj"
    assert first.largest == float("inf")


def test_a_module_that_one_has_alone_is_left_out(models):
    source = models["llama"]
    result = copy.deepcopy(source)
    result.model.norm = torch.nn.Sequential(torch.nn.Identity(), result.model.norm)
    assert traced(source, result).first(THRESHOLD) is None


def test_tensors_that_a_model_changes_in_place_are_kept_as_they_were(models):
    source = copy.deepcopy(models["llama"])
    source.model.layers[0].register_forward_hook(lambda *call: call[2].add_(1))
    assert traced(source, copy.deepcopy(source)).first(0.0) is None


def test_a_batch_is_cut_to_what_fits(models):
    with float64(models["llama"]):
        calls, _ = record(models["llama"], lambda: outputs_of(models["llama"], probe()))
    kept = [tensor for call in calls.values() for tensor in call.values()]
    nbytes = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in kept}.values())
    assert tokens_that_fit(kept, 36, nbytes) == 36
    assert tokens_that_fit(kept, 36, nbytes // 3) in (11, 12)


def test_buffers_are_compared(models):
    source = models["llama"]
    result = copy.deepcopy(source)
    result.model.rotary_emb.inv_freq.mul_(1.001)
    first = traced(source, result).first(THRESHOLD)
    assert first.name == "model.rotary_emb"
    assert own_differences(source, result, first.name) == ("model.rotary_emb.inv_freq",)
    assert json.dumps([first.name, first.largest])
