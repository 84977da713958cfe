"""Mixtures of experts do what the dense model did, in float64 and by plain transformers; what is no copy is caught, and what does not fit refused."""

import importlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support import recipes
from support.tiny import build as tiny

import graftkit
from graftkit import engine
from graftkit.architecture.widths.miniature import ENOUGH
from graftkit.checkpoint.tensors import Zeros
from graftkit.errors import RecipeError, VerificationFailed
from graftkit.operations.experts.sources import Copy

#: The module, whose name its function has in the package.
operation = importlib.import_module("graftkit.operations.upcycle_moe")

MIXTRAL = {"op": "upcycle_moe", "num_experts": 4, "architecture": "MixtralForCausalLM"}
W1 = "model.layers.*.block_sparse_moe.experts.*.w1.weight"


def logits(directory):
    """What plain transformers gives."""
    model, info = recipes.load(directory)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        return model(torch.arange(5, 25)[None]).logits


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    place = tmp_path_factory.mktemp("qwen") / "source"
    tiny("Qwen2ForCausalLM", place)
    return place


def test_experts_are_copies_and_the_model_does_what_it_did(sources, tmp_path):
    source, output = sources("llama"), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, MIXTRAL))
    old, new = (load_file(place / "model.safetensors") for place in (source, output))
    pairs = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for layer in (0, 1):
        for ours, theirs in pairs.items():
            for expert in range(4):
                made = new.pop(f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{ours}.weight")
                assert torch.equal(made, old[f"model.layers.{layer}.mlp.{theirs}.weight"])
        router = new.pop(f"model.layers.{layer}.block_sparse_moe.gate.weight")
        assert router.shape == (4, 32)
        assert 0.01 < router.std() < 0.03
    assert all(torch.equal(value, old[name]) for name, value in new.items())
    assert old.keys() - new.keys() == {f"model.layers.{i}.mlp.{name}.weight" for i in (0, 1) for name in pairs.values()}
    assert torch.allclose(logits(source), logits(output), rtol=0, atol=1e-5)
    assert report.plan.promise.strength.word == "exact"
    config = recipes.config_of(output)
    assert (config["model_type"], config["num_local_experts"], config["num_experts_per_tok"]) == ("mixtral", 4, 2)


def test_a_shared_expert_is_silent_and_weights_are_renormalised(qwen, tmp_path):
    output = tmp_path / "out"
    report = graftkit.apply(recipes.recipe(qwen, output, {"op": "upcycle_moe", "num_experts": 4}))
    config, new = recipes.config_of(output), load_file(output / "model.safetensors")
    assert config["architectures"] == ["Qwen2MoeForCausalLM"]
    assert config["norm_topk_prob"]
    assert config["moe_intermediate_size"] == config["shared_expert_intermediate_size"] == config["intermediate_size"]
    shared = "model.layers.0.mlp.shared_expert."
    assert not new[f"{shared}down_proj.weight"].any()
    assert new[f"{shared}gate_proj.weight"].any()
    assert new[f"{shared}up_proj.weight"].any()
    assert torch.allclose(logits(qwen), logits(output), rtol=0, atol=1e-5)
    assert "norm_topk_prob is true, without which outputs are others" in report.plan.notes


def test_fused_experts_are_put_together_of_the_sources_bytes(tmp_path):
    source, output = tmp_path / "source", tmp_path / "out"
    tiny("GraniteForCausalLM", source)
    graftkit.apply(
        recipes.recipe(source, output, {**MIXTRAL, "architecture": "GraniteMoeForCausalLM", "num_experts_per_tok": 1})
    )
    old, new = (load_file(place / "model.safetensors") for place in (source, output))
    fused = new["model.layers.1.block_sparse_moe.input_linear.weight"]
    gate_up = torch.cat([old[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")])
    assert torch.equal(fused, gate_up.expand(4, *gate_up.shape))
    assert torch.allclose(logits(source), logits(output), rtol=0, atol=1e-5)


def test_behind_new_tokens_and_before_an_adapter(sources, tmp_path):
    output = tmp_path / "out"
    before = {"op": "extend_vocab", "tokens": ["<new>"]}
    after = {"op": "add_lora", "r": 2, "target_modules": ["q_proj"]}
    report = graftkit.apply(recipes.recipe(sources("llama"), output, before, MIXTRAL, after))
    assert (output / "adapter/adapter_model.safetensors").is_file()
    assert report.plan.correspondence.gone
    assert json.loads((output / "config.json").read_text())["architectures"] == ["MixtralForCausalLM"]


def assert_refused(source, place, *operations):
    with pytest.raises(VerificationFailed, match="lens: .* differs in float64 .*nothing was written"):
        graftkit.apply(recipes.recipe(source, place / "out", *operations))
    assert not (place / "out").exists()


def found_instead(monkeypatch, change):
    """Let the experiment say something else than it found."""
    search = operation.find_upcycling
    monkeypatch.setattr(operation, "find_upcycling", lambda *given: change(search(*given)))


def test_a_gate_in_the_place_of_the_other_matrix_is_caught(sources, tmp_path, monkeypatch):
    swapped = {W1: Copy(("model.layers.*.mlp.up_proj.weight",)), W1.replace("w1", "w3"): Copy(("model.layers.*.mlp.gate_proj.weight",))}  # fmt: skip
    found_instead(monkeypatch, lambda found: replace(found, ways={**found.ways, **swapped}))
    assert_refused(sources("llama"), tmp_path, MIXTRAL)


def test_an_expert_that_is_no_copy_is_caught(sources, tmp_path, monkeypatch):
    make, name = operation.sparse_tensors, W1.replace("*", "0")

    def changed(*given):
        made = make(*given)
        return made.with_tensors({name: Zeros(made.tensors[name].dtype, made.tensors[name].shape)})

    monkeypatch.setattr(operation, "sparse_tensors", changed)
    assert_refused(sources("llama"), tmp_path, MIXTRAL)


def test_weights_that_are_not_renormalised_are_caught(qwen, tmp_path, monkeypatch):
    found_instead(monkeypatch, lambda found: replace(found, config={**found.config, "norm_topk_prob": False}))
    assert_refused(qwen, tmp_path, {**MIXTRAL, "architecture": "Qwen2MoeForCausalLM"})


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """A model of many values in which the second of two blocks sees the last 4096 tokens alone, so that no short text shows it."""
    place = tmp_path_factory.mktemp("windows") / "source"
    changed = {
        "sliding_window": 4096,
        "layer_types": ["full_attention", "sliding_attention"],
        "intermediate_size": 8192,
    }
    tiny("MinistralForCausalLM", place, config_overrides=changed)
    assert sum(value.numel() for value in load_file(place / "model.safetensors").values()) > ENOUGH
    return place


@pytest.mark.parametrize("sparse", ["SolarOpenForCausalLM", "MixtralForCausalLM"])
def test_a_class_without_the_windows_of_the_dense_one_is_refused(sparse, windows, tmp_path):
    """Solar knows no window, and Mixtral has one in every block or in none."""
    with pytest.raises(RecipeError, match="a small one gives other outputs"):
        graftkit.plan(recipes.recipe(windows, tmp_path / "out", {**MIXTRAL, "architecture": sparse}))


def test_a_window_that_both_classes_have_is_kept(tmp_path):
    tiny("MistralForCausalLM", tmp_path / "source", config_overrides={"sliding_window": 4096})
    plan = graftkit.plan(recipes.recipe(tmp_path / "source", tmp_path / "out", MIXTRAL))
    assert plan.result.config["sliding_window"] == 4096


@pytest.mark.slow
def test_without_a_class_llama_becomes_mixtral(sources, tmp_path):
    named = {key: value for key, value in MIXTRAL.items() if key != "architecture"}
    planned = graftkit.plan(recipes.recipe(sources("llama"), tmp_path / "out", named))
    assert planned.result.config["architectures"] == ["MixtralForCausalLM"]


@pytest.mark.parametrize(
    ("dense", "sparse", "layers"),
    [
        (
            "Ernie4_5ForCausalLM",
            "Ernie4_5_MoeForCausalLM",
            "each layer",
        ),  # whose config leaves the first block dense by itself
        (
            "Cohere2ForCausalLM",
            "Cohere2MoeForCausalLM",
            "each layer",
        ),  # whose config lists as many kinds of layers as it has by itself
    ],
)
def test_fields_of_the_sparse_class_alone_fit_the_number_of_blocks(dense, sparse, layers, tmp_path):
    tiny(dense, tmp_path / "source")
    report = graftkit.apply(recipes.recipe(tmp_path / "source", tmp_path / "out", {**MIXTRAL, "architecture": sparse}))
    assert f"4 experts in {layers}, each token" in " ".join(report.plan.outcomes[0].notes)
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {name.split(".")[2] for name in tensors if name.endswith("mlp.gate.weight")} == {"0", "1"}


def test_copies_of_what_a_block_has_not_are_not_tried(tmp_path):
    """A matrix that Qwen3-Next has in every block has the shape of one of linear attention, which not every block of Qwen3.5 has."""
    tiny("Qwen3_5ForCausalLM", tmp_path / "source")
    with pytest.raises(RecipeError, match="a small one gives other outputs"):
        graftkit.plan(
            recipes.recipe(tmp_path / "source", tmp_path / "out", {**MIXTRAL, "architecture": "Qwen3NextForCausalLM"})
        )


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("mixtral", {}, "MixtralForCausalLM has experts already"),
        ("llama", {"architecture": "MixtrlForCausalLM"}, "architecture: MixtrlForCausalLM is no model class of transformers"),
        ("llama", {"architecture": "GPT2LMHeadModel"}, "architecture: GPT2LMHeadModel cannot do what LlamaForCausalLM does: its config has no num_experts_per_tok"),
        ("llama", {"architecture": "JetMoeForCausalLM"}, "a small one gives other outputs than the dense class with every copy"),
        ("gpt2", {}, "its num_hidden_layers would be 32, and is 2: it calls it by another name"),
        ("llama", {"architecture": "OlmoeForCausalLM"}, "a small one gives other outputs than the dense class with every copy"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(family, fields, words, sources):
    with pytest.raises(RecipeError) as error:
        engine.plan(recipes.recipe(sources(family), "out/never", {**MIXTRAL, **fields}))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
