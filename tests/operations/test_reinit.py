"""reinit on real families: what is new is new as a fresh model has it, all else is kept byte for byte."""

import json
import math
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import recipes
from support.command import here

import graftkit
from graftkit.errors import InputRejected, RecipeError

#: Names in memory of the layers' common prefix.
PREFIX = {
    "llama": "model.layers.", "gpt2": "transformer.h.", "gemma2": "model.layers.", "mixtral": "model.layers.",
    "bert": "bert.encoder.layer.", "bert_base": "encoder.layer.", "bart": "model.decoder.layers.", "t5": "decoder.block.",
    "gpt_neox": "gpt_neox.layers.", "llava": "model.language_model.layers.",
}  # fmt: skip


def recipe(source, output, *operations, **fields):
    listed = [{"op": "reinit", **operation} for operation in operations]
    return recipes.recipe(source, output, *listed, **fields)


def load(directory):
    model, info = recipes.load(directory)
    assert not info["missing_keys"]
    return model


def tensors(directory):
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("family", PREFIX)
def test_the_last_layer_is_new_and_nothing_else_is(family, sources, tmp_path):
    source = sources(family)
    report = graftkit.apply(recipe(source, tmp_path / "out", {"layers": "last 1"}))
    assert report.outputs.measured
    assert report.outputs.passed
    old, new = load(source).state_dict(), load(tmp_path / "out").state_dict()
    top = PREFIX[family] + "1."
    for name, value in new.items():
        if not name.startswith(top):
            assert torch.equal(value, old[name]), name
        elif value.ndim >= 2:
            assert not torch.equal(value, old[name]), name
            assert abs(float(value.double().square().mean()) / 0.02**2 - 1) < 8 * math.sqrt(2 / value.numel()), name
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            gain = 0.0 if family == "gemma2" else 1.0
            assert torch.equal(value, torch.full_like(value, gain)), name
    with pytest.raises(AssertionError):
        assert torch.equal(
            new[next(n for n in new if n.startswith(top))], old[next(n for n in new if n.startswith(top))]
        )


def test_the_report_says_what_changed(sources, tmp_path):
    source = sources("llama")
    report = graftkit.apply(recipe(source, tmp_path / "out", {"layers": [1]}))
    figures = report.figures["operations.0.reinit"]
    name = "model.layers.1.mlp.up_proj.weight"
    before, after = tensors(source)[name], tensors(tmp_path / "out")[name]
    assert figures[name]["rms_before"] == pytest.approx(float(before.double().square().mean().sqrt()))
    assert figures[name]["rms_after"] == pytest.approx(float(after.double().square().mean().sqrt()))
    assert figures[name]["elements"] == before.numel()
    assert set(figures) == changed(tensors(source), tensors(tmp_path / "out"))
    logits = next(item for item in report.outputs.comparisons if item.name == "logits")
    old, new = load(source).eval(), load(tmp_path / "out").eval()
    ids = torch.randint(4, 300, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p, q = (model(ids).logits.double().log_softmax(-1) for model in (old, new))
    measured = float((p.exp() * (p - q)).sum(-1).mean())
    assert logits.kl_mean == pytest.approx(measured, rel=0.3)
    assert 0 < logits.kl_mean < logits.kl_max
    assert report.verdict.startswith("verified (intentional): ")


def test_conv1d_has_the_fans_of_its_own_layout(sources, tmp_path):
    source = sources("gpt2")
    operation = {"layers": "last 1", "parameters": ["*.mlp.c_fc.weight", "*attn.c_attn.weight"], "init": "lecun_normal"}
    graftkit.apply(recipe(source, tmp_path / "out", operation))
    new = load(tmp_path / "out").state_dict()
    fc = new["transformer.h.1.mlp.c_fc.weight"]
    assert fc.shape[0] != fc.shape[1]
    assert float(fc.std()) == pytest.approx(1 / math.sqrt(fc.shape[0]), rel=0.06)
    xavier = {**operation, "init": "xavier_normal"}
    graftkit.apply(recipe(source, tmp_path / "xavier", xavier))
    qkv = load(tmp_path / "xavier").state_dict()["transformer.h.1.attn.c_attn.weight"]
    width = qkv.shape[0]
    assert qkv.shape[1] == 3 * width
    assert float(qkv.std()) == pytest.approx(1 / math.sqrt(width), rel=0.06), "each of q, k and v has its own fan out"


def test_experts_that_are_stored_one_by_one(sources, tmp_path):
    source = sources("mixtral")
    operation = {"parameters": ["*layers.1*experts*"], "init": "orthogonal"}
    graftkit.apply(recipe(source, tmp_path / "out", operation))
    model = load(tmp_path / "out")
    experts = model.state_dict()["model.layers.1.mlp.experts.down_proj"]
    for expert in experts.double():
        singular = torch.linalg.svdvals(expert)
        assert torch.allclose(singular, torch.ones_like(singular), atol=1e-5)
    assert not torch.equal(experts[0], experts[1])


def test_bits_depend_on_seed_place_and_name_alone(sources, tmp_path):
    whole, sharded = sources("llama"), sources("llama", shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    one = {"layers": [1], "init": "kaiming_uniform"}
    graftkit.apply(recipe(whole, tmp_path / "whole", one))
    graftkit.apply(recipe(sharded, tmp_path / "sharded", {"layers": [1, 0], "init": "kaiming_uniform"}))
    graftkit.apply(recipe(whole, tmp_path / "seed", one, seed=1))
    first, second, other = (tensors(tmp_path / name) for name in ("whole", "sharded", "seed"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])
    assert changed(first, second) == {n for n in first if "layers.0." in n}


def test_the_dtype_is_the_sources_and_values_are_cast_once(sources, tmp_path):
    wide, narrow = sources("llama"), sources("llama", dtype="bfloat16")
    for name, source in (("wide", wide), ("narrow", narrow)):
        graftkit.apply(recipe(source, tmp_path / name, {"layers": "first 1"}))
    first, second = tensors(tmp_path / "wide"), tensors(tmp_path / "narrow")
    name = "model.layers.0.mlp.up_proj.weight"
    assert second[name].dtype == torch.bfloat16
    assert torch.equal(second[name], first[name].bfloat16())


def test_mup_writes_multipliers_that_an_optimizer_can_read(sources, tmp_path):
    source = sources("llama")
    operation = {"layers": "last 1", "init": {"scheme": "mup", "base_width": 8}}
    graftkit.apply(recipe(source, tmp_path / "out", operation))
    multipliers = json.loads((tmp_path / "out" / "lr_multipliers.json").read_text())
    model = load(tmp_path / "out")
    names = dict(model.named_parameters())
    assert multipliers.keys() == {name for name in names if ".layers.1." in name}
    for name, multiplier in multipliers.items():
        assert multiplier == (0.25 if names[name].ndim == 2 else 1.0), name
    groups = [{"params": [value], "lr": 1e-3 * multipliers.get(name, 1.0)} for name, value in names.items()]
    torch.optim.AdamW(groups)
    up = names["model.layers.1.mlp.up_proj.weight"]
    assert float(up.detach().std()) == pytest.approx(1 / math.sqrt(32), rel=0.06)


def test_mup_treats_the_output_embedding_as_readout_and_keeps_earlier_multipliers(sources, tmp_path):
    source = sources("llama")
    operation = {"parameters": ["lm_head.weight"], "init": {"scheme": "mup", "base_width": 8}}
    other = {"layers": [0], "init": {"scheme": "mup", "base_width": 16}}
    graftkit.apply(recipe(source, tmp_path / "out", other, operation))
    head = tensors(tmp_path / "out")["lm_head.weight"]
    assert float(head.std()) == pytest.approx(1 / math.sqrt(32 * 4), rel=0.03)
    multipliers = json.loads((tmp_path / "out" / "lr_multipliers.json").read_text())
    assert multipliers["lm_head.weight"] == 0.25
    assert multipliers["model.layers.0.mlp.up_proj.weight"] == 0.5


def test_matched_keeps_the_norms_of_the_trained_rows(sources, tmp_path):
    source = sources("llama")
    operation = {"parameters": ["*layers.1.mlp.up_proj.weight"], "init": "matched"}
    graftkit.apply(recipe(source, tmp_path / "out", operation))
    name = "model.layers.1.mlp.up_proj.weight"
    before, after = tensors(source)[name], tensors(tmp_path / "out")[name]
    torch.testing.assert_close(after.norm(dim=1).sort().values, before.norm(dim=1).sort().values)
    assert abs(float(torch.cosine_similarity(before.flatten(), after.flatten(), dim=0))) < 0.1


def test_depth_scaled_counts_the_layers_of_the_checkpoint(sources, tmp_path):
    operation = {"parameters": ["*1.self_attn.o_proj.weight"], "init": {"scheme": "depth_scaled", "std": 0.1}}
    graftkit.apply(recipe(sources("llama"), tmp_path / "out", operation))
    name = "model.layers.1.self_attn.o_proj.weight"
    assert float(tensors(tmp_path / "out")[name].std()) == pytest.approx(0.1 / math.sqrt(4), rel=0.1)


def test_patterns_that_leave_out(sources, tmp_path):
    source = sources("bert")
    operation = {"layers": [1], "parameters": ["*attention*", "!*.bias", "!*LayerNorm*"]}
    graftkit.apply(recipe(source, tmp_path / "out", operation))
    found = changed(tensors(source), tensors(tmp_path / "out"))
    stem = "bert.encoder.layer.1.attention."
    assert found == {f"{stem}{part}.weight" for part in ("self.query", "self.key", "self.value", "output.dense")}


@pytest.mark.parametrize(
    ("operation", "error", "words"),
    [
        ({"parameters": ["*.self_atn.*"]}, RecipeError, "operations.0.parameters.0: the pattern '*.self_atn.*' matches no parameter; did you mean '*.self_attn.*'?"),
        ({"parameters": ["*up_porj*"]}, RecipeError, "did you mean '*up_proj*'?"),
        ({"parameters": ["*", "!*zzz*"]}, RecipeError, "parameters.1: the pattern '!*zzz*' matches no parameter; a name here is"),
        ({"layers": [0], "parameters": ["lm_head.weight"]}, RecipeError, "matches no parameter"),
        ({"parameters": ["*norm*", "!*norm*"]}, RecipeError, "leave out all"),
        ({"layers": [2]}, RecipeError, "operations.0.layers: model.layers has 2 layers, numbered from 0 to 1"),
        ({"layers": "last 3"}, RecipeError, "has 2 layers"),
        ({"parameters": ["*layernorm*"], "init": "zeros"}, RecipeError, "operations.0.init: no matrix is selected"),
        ({}, RecipeError, "selects nothing"),
        ({"parameters": ["!*"]}, RecipeError, "only leaves out"),
        ({"parameters": ["*", "*"]}, RecipeError, "given a second time"),
        ({"layers": "last two"}, RecipeError, "must be 'last N', 'first N' or a list of layer numbers"),
        ({"layers": [0, 0]}, RecipeError, "names a layer twice"),
        ({"layers": [0], "init": "xavier"}, RecipeError, "did you mean 'xavier_normal'?"),
    ],
)  # fmt: skip
def test_mistakes_are_named(operation, error, words, sources, tmp_path):
    with pytest.raises(error) as caught:
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", operation))
    assert words in str(caught.value)


def test_one_side_of_a_pair_that_is_stored_twice_is_refused(sources, tmp_path):
    source = shutil.copytree(sources("llama_tied"), tmp_path / "twice")
    path = source / "model.safetensors"
    stored = load_file(path)
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}, path, {"format": "pt"})
    with pytest.raises(InputRejected, match="is tied to"):
        graftkit.plan(recipe(source, tmp_path / "out", {"parameters": ["*embed_tokens*"]}))


def test_quantized_weights_are_refused(sources, tmp_path):
    source = shutil.copytree(sources("llama"), tmp_path / "quantized")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(InputRejected, match="quantization_config"):
        graftkit.plan(recipe(source, tmp_path / "out", {"layers": [0]}))


def test_what_a_class_leaves_open_is_named_and_can_be_left_out(tmp_path):
    from support import tiny

    source = tmp_path / "apertus"
    tiny.build("ApertusForCausalLM", source)
    remedy = r'parameters: \["\*", "!\*.alpha_n", "!\*.alpha_p"\]'
    with pytest.raises(
        RecipeError, match="does not say what .*act_fn.alpha_n' holds in a new model; leave it out: " + remedy
    ):
        graftkit.plan(recipe(source, tmp_path / "out", {"layers": "last 1"}))
    operation = {"layers": "last 1", "parameters": ["*", "!*.alpha_*"]}
    graftkit.apply(recipe(source, tmp_path / "out", operation))
    assert not any("alpha" in name for name in changed(tensors(source), tensors(tmp_path / "out")))


def test_a_state_space_layer_is_what_its_class_makes(tmp_path):
    from support import tiny

    source = tmp_path / "mamba"
    tiny.build("MambaForCausalLM", source)
    graftkit.apply(recipe(source, tmp_path / "out", {"layers": "last 1"}))
    new = load(tmp_path / "out").state_dict()
    name = next(name for name in reversed(new) if name.endswith("A_log"))
    states = new[name].shape[1]
    assert torch.allclose(new[name], torch.arange(1, states + 1).float().log().expand_as(new[name]))


def test_the_recipe_for_few_samples_through_the_command_line(sources, tmp_path):
    source, output = sources("bert_base"), tmp_path / "out"
    done = here("apply", "recipes/reinit_top_layers.yaml", f"base_model={source}", "--output", output)
    assert done.returncode == 0, done.stderr
    for words in ("layers 0, 1 of the 2 in encoder.layer", "intentional", "measured", "std 0.02, from the config"):
        assert words in done.stdout
    found = changed(tensors(source), tensors(output))
    assert {name for name in found if "pooler" in name} == {"pooler.dense.bias", "pooler.dense.weight"}
    assert all("pooler" in name or name.startswith("encoder.layer.") for name in found)
    with safe_open(output / "model.safetensors", "pt") as file:
        assert not file.get_tensor("pooler.dense.bias").any()


def test_a_pooler_that_another_class_owns_is_found(sources, tmp_path):
    source = sources("bert_base_with_head")
    config = json.loads((source / "config.json").read_text())
    other = shutil.copytree(source, tmp_path / "masked_lm")
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    names = tensors(source)
    if not any("pooler" in name for name in names):
        stored = load_file(other / "model.safetensors")
        dense = {"bert.pooler.dense.weight": torch.rand(32, 32), "bert.pooler.dense.bias": torch.rand(32)}
        save_file({**stored, **dense}, other / "model.safetensors", {"format": "pt"})
    graftkit.apply(recipe(other, tmp_path / "out", {"parameters": ["*pooler*"]}))
    after = tensors(tmp_path / "out")
    assert not after["bert.pooler.dense.bias"].any()
    assert float(after["bert.pooler.dense.weight"].std()) == pytest.approx(0.02, rel=0.15)


def test_mup_of_a_lookup_asks_for_a_spread_when_it_is_planned(sources):
    init = {"scheme": "mup", "base_width": 8}
    operation = {"parameters": ["model.embed_tokens.weight"], "init": init}
    with pytest.raises(RecipeError, match=r"operations\.0\.init: .*has no fan in that could give its spread; give std"):
        graftkit.plan(recipe(sources("llama"), "out/never", operation))
    graftkit.plan(recipe(sources("llama"), "out/never", {**operation, "init": {**init, "std": 0.02}}))
