"""The output check sees each planted fault, and passes what is clean."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import ROWS, build

import graftkit
from graftkit.architecture.correspondence import Correspondence
from graftkit.errors import InputRejected, VerificationFailed
from graftkit.verification.kl_promise import KLPromise
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.subject import Subject

FRESH = (ROWS, ROWS + 1)
CHANGE = Correspondence.of_ids(ROWS, ROWS + 2, ROWS, FRESH)
PROMISE = KLPromise("mean", ROWS)


def make(family, place, dtype):
    source = build(family, place / "source", tokens=ROWS, dtype=dtype)
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}
    recipe = {"version": 1, "base_model": str(source), "operations": [operation], "output": str(place / "result")}
    graftkit.apply({**recipe, "verify": {"outputs": False}})
    return source, place / "result"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make("llama", tmp_path_factory.mktemp("llama"), "float32")


@pytest.fixture(scope="module")
def llama_bf16(tmp_path_factory):
    return make("llama", tmp_path_factory.mktemp("llama_bf16"), "bfloat16")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make("bert", tmp_path_factory.mktemp("bert"), "float32")


@pytest.fixture
def broken(tmp_path):
    def copy(pair, *, weights=None, config=None):
        target = tmp_path / "broken"
        shutil.copytree(pair[1], target)
        if weights is not None:
            tensors = load_file(target / "model.safetensors")
            weights(tensors)
            save_file({k: v.contiguous() for k, v in tensors.items()}, target / "model.safetensors", {"format": "pt"})
        if config is not None:
            values = json.loads((target / "config.json").read_text())
            config(values)
            (target / "config.json").write_text(json.dumps(values))
        return pair[0], target

    return copy


def check(pair, promise=PROMISE):
    return compare_outputs(Subject(*pair, correspondence=CHANGE, kl=lambda: promise))


@pytest.mark.parametrize("name", ["llama", "llama_bf16", "bert"])
def test_a_clean_pair_passes_with_every_old_id_covered(name, request):
    report = check(request.getfixturevalue(name))
    assert report.passed, report.failures
    assert report.ids_covered == report.ids == ROWS
    hidden = [item for item in report.comparisons if "hidden" in item.name]
    assert hidden
    assert all(item.bitwise for item in hidden)
    assert report.distribution.kl_max <= report.distribution.bound
    assert 0 < report.mass_max < 1


def ulp(tensors):
    tensors["model.layers.1.mlp.down_proj.weight"].view(torch.int16)[0, 3] ^= 1


def swapped(tensors):
    table = tensors["model.embed_tokens.weight"]
    table[[100, 101]] = table[[101, 100]]


def transposed(tensors):
    tensors["model.layers.0.self_attn.o_proj.weight"] = tensors["model.layers.0.self_attn.o_proj.weight"].T


def retied(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def old_head_row(tensors):
    tensors["lm_head.weight"][7] += 0.5


@pytest.mark.parametrize(
    ("pair", "fault", "words"),
    [
        ("llama_bf16", ulp, "hidden_states.2"),
        ("llama", swapped, "hidden_states.0"),
        ("llama", transposed, "hidden_states.1"),
        ("llama", retied, "logits"),
        ("llama", old_head_row, "logits"),
        ("bert", lambda t: t["bert.encoder.layer.0.output.dense.bias"].zero_(), "hidden_states.1"),
        ("bert", lambda t: t["cls.predictions.bias"][5].add_(1), "logits"),
    ],
)
def test_changed_weights_are_named_where_they_first_show(pair, fault, words, broken, request):
    report = check(broken(request.getfixturevalue(pair), weights=fault))
    assert not report.passed
    assert words in report.failures[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda c: c.update(rms_norm_eps=1e-3), "hidden_states"),
        (lambda c: c.update(num_hidden_layers=1), "unexpected tensors"),
        (lambda c: c.update(num_hidden_layers=3), "missing tensors"),
        (lambda c: c.update(dtype="bfloat16"), "loads as"),
        (lambda c: c.update(rope_parameters={"rope_theta": 100.0, "rope_type": "default"}), "hidden_states"),
    ],
)
def test_a_changed_config_is_seen(config, words, broken, llama):
    report = check(broken(llama, config=config))
    assert words in " ".join(report.failures)


def test_a_stale_vocabulary_size_does_not_load(broken, llama):
    with pytest.raises(VerificationFailed, match="does not load"):
        check(broken(llama, config=lambda c: c.update(vocab_size=ROWS)))


def test_a_missing_head_is_named(broken, llama):
    report = check(broken(llama, weights=lambda t: t.pop("lm_head.weight")))
    assert "missing tensors: lm_head.weight" in " ".join(report.failures)


def test_a_source_that_would_be_random_at_every_load_is_refused(broken, llama):
    _, target = broken(llama, weights=lambda t: t.pop("lm_head.weight"))
    with pytest.raises(InputRejected, match="lm_head.weight"):
        compare_outputs(Subject(target, target))


def test_a_new_row_far_from_the_mean_breaks_the_bound(broken, llama):
    def large(tensors):
        tensors["lm_head.weight"][FRESH[0]] += tensors["lm_head.weight"][:50].mean(0) * 40

    report = check(broken(llama, weights=large))
    assert "above the promised bound" in report.failures[0]


def test_a_zero_padded_tied_bias_breaks_the_bound(broken, bert, tmp_path):
    def sunk(tensors):
        tensors["cls.predictions.bias"][:ROWS] -= 5

    source = tmp_path / "sunk"
    shutil.copytree(bert[0], source)
    tensors = load_file(source / "model.safetensors")
    sunk(tensors)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})

    def padded(tensors):
        sunk(tensors)
        tensors["cls.predictions.bias"][ROWS:] = 0

    _, target = broken(bert, weights=padded)
    report = compare_outputs(Subject(source, target, correspondence=CHANGE, kl=lambda: PROMISE))
    assert any("above the promised bound" in failure for failure in report.failures)
    assert report.mass_max > 0.2


def test_cached_decoding_is_covered_for_a_causal_model_only(llama, bert):
    assert check(llama).cached_decoding == "covered"
    assert check(bert).cached_decoding == "does not apply: the class does not generate"


def test_a_new_id_beyond_a_table_that_did_not_grow_is_caught(tmp_path):
    from support.tiny import build as build_tiny

    sizes = {"vocab_size_per_layer_input": ROWS + 1}
    build_tiny("Gemma4ForCausalLM", tmp_path / "source", vocab_size=ROWS, tokenizer_size=ROWS, config_overrides=sizes)
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}
    recipe = {
        "version": 1,
        "base_model": str(tmp_path / "source"),
        "operations": [operation],
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(VerificationFailed, match="fails on the new ids.*index out of range"):
        graftkit.apply(recipe)
    assert not (tmp_path / "out").exists()
