"""One unit in the last place is seen wherever the probes reach, far above the floor; where they do not, the reason is named."""

import subprocess
import sys

import pytest
import torch
from support.families import build
from support.lens import opened, probe

from graftkit.verification.lens.floor import LEAST, MARGIN, measure_floor
from graftkit.verification.lens.reach import Reach, random_places

PLACES = 40


def reach_of(model, extra_inputs=frozenset()):
    return Reach(model, [probe(4, 16)], extra_inputs, measure_floor(model, probe(), extra_inputs).threshold)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return opened(build("bert", tmp_path_factory.mktemp("bert"), dtype="bfloat16"))[0]


def test_random_flips_are_seen_at_every_place_that_the_probes_reach(tmp_path):
    model, _ = opened(build("llama", tmp_path, dtype="bfloat16"))
    before = {name: value.clone() for name, value in model.named_parameters()}
    reach, held = reach_of(model), set(probe(4, 16).ids.flatten().tolist())
    flips = [reach.flip(*place) for place in random_places(model, PLACES, torch.Generator().manual_seed(0))]
    assert len({flip.name for flip in flips}) >= PLACES // 2
    for flip in flips:
        unheld = flip.name == "model.embed_tokens.weight" and flip.place[0] not in held
        assert flip.reason == ("row of an id or position that no probe holds" if unheld else "")
        assert unheld or flip.outputs > MARGIN * LEAST
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_a_key_bias_is_cancelled_and_seen_inside(bert):
    flip = reach_of(bert).flip("bert.encoder.layer.0.attention.self.key.bias", (3,))
    assert flip.reason == "constant that softmax cancels: a key bias"
    assert flip.inside > 1e-6
    assert not reach_of(bert).flip("bert.encoder.layer.0.attention.self.query.bias", (3,)).reason


def test_a_position_that_no_probe_has_is_named(bert):
    flip = reach_of(bert).flip("bert.embeddings.position_embeddings.weight", (40, 2))
    assert flip.reason == "row of an id or position that no probe holds"
    assert not reach_of(bert).flip("bert.embeddings.position_embeddings.weight", (3, 2)).reason


def test_dead_units_and_unused_experts_are_named(tmp_path):
    model, _ = opened(build("t5", tmp_path / "t5", dtype="bfloat16"))
    extra_inputs = frozenset()
    block = model.encoder.block[0].layer[1].DenseReluDense
    block.wi.weight.data[5] = 0
    found = reach_of(model, extra_inputs).flip("encoder.block.0.layer.1.DenseReluDense.wo.weight", (3, 5))
    assert found.reason == "input that is zero on every probe: a dead unit before it"
    model, _ = opened(build("mixtral", tmp_path / "mixtral", dtype="bfloat16"))
    routed = []
    hook = model.model.layers[0].mlp.gate.register_forward_hook(
        lambda *call: routed.extend(call[2][-1].flatten().tolist())
    )
    reach = Reach(model, [probe(1, 1)], frozenset(), 1e-12)
    hook.remove()
    used, unused = routed[0], min({0, 1, 2, 3} - set(routed))
    weight = "model.layers.0.mlp.experts.gate_up_proj"
    assert reach.flip(weight, (unused, 1, 1)).reason == "expert that no token was routed to"
    assert not reach.flip(weight, (used, 1, 1)).reason


def test_a_zero_has_a_neighbour_that_nothing_can_see(bert):
    bert.bert.encoder.layer[0].output.dense.weight.data[1, 1] = 0
    flip = reach_of(bert).flip("bert.encoder.layer.0.output.dense.weight", (1, 1))
    assert flip.reason.startswith("zero or subnormal value")


@pytest.mark.slow
def test_the_script_prints_what_sees_a_flip(demo):
    done = subprocess.run(
        [sys.executable, "scripts/bench_lens.py", str(demo), "--places", "6"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bytes                  6 of 6" in done.stdout
    assert "lens, outputs          6 of 6" in done.stdout


def test_a_unit_that_is_off_on_every_probe_is_named(bert):
    """Under a ReLU with a bias far below zero, a weight moves what its own linear gives, and nothing behind it."""
    block = bert.bert.encoder.layer[1].intermediate
    before, bias = block.intermediate_act_fn, block.dense.bias.data.clone()
    block.intermediate_act_fn, block.dense.bias.data[5] = torch.nn.ReLU(), -1000
    weight = "bert.encoder.layer.1.intermediate.dense.weight"
    off = reach_of(bert).flip(weight, (5, 3))
    block.dense.bias.data[5] = 1
    on = reach_of(bert).flip(weight, (5, 3))
    block.intermediate_act_fn, block.dense.bias.data = before, bias
    assert off.reason == "unit that is off on every probe"
    assert off.outputs == 0 < off.inside
    assert not on.reason
