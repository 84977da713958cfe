"""What is done to a quantized checkpoint whose embeddings and head are plain: packed tensors are carried, byte for byte."""

import json

import pytest
from safetensors.torch import load_file, save_file
from support.quantized import KINDS, NOT_RUN, quantized
from support.recipes import config_of, recipe

import graftkit
from graftkit.architecture.accounting import account
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, RecipeError
from graftkit.running.runnable import cannot_unpack

LLAMA_KINDS = [kind for kind in KINDS if kind not in ("mxfp4", "modelopt")]
ADD = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}
RENAME = {"op": "rename_tokens", "names": {"<unk>": "<|x|>"}, "init": "mean"}
REMAKE = {"op": "reinit_rows", "tokens": [9]}
CLASSIFY = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b"], "pad_token": "<pad>"}
LORA = {"op": "add_lora", "r": 2, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def bases(sources, tmp_path_factory):
    """Small quantized checkpoints by kind, each made once: read them, do not change them."""
    made = {}

    def base(kind):
        if kind not in made:
            made[kind] = quantized(sources("llama", "bfloat16"), tmp_path_factory.mktemp(kind) / kind, kind)
        return made[kind]

    return base


def tensors_of(place):
    return load_file(place / "model.safetensors")


def copy_of(base, place, tensors=None, **config):
    """A copy of a checkpoint with other tensors, and values of its config; None takes one away."""
    place.mkdir()
    for file in base.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    if tensors is not None:
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
    said = {name: value for name, value in {**config_of(base), **config}.items() if value is not None}
    (place / "config.json").write_text(json.dumps(said))
    return place


@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_rows_and_heads_are_made_and_packed_tensors_carried(bases, kind, tmp_path):
    base = bases(kind)
    report = graftkit.apply(recipe(base, tmp_path / "out", RENAME, ADD, REMAKE, CLASSIFY))
    old, new = tensors_of(base), tensors_of(tmp_path / "out")
    packed = account(Checkpoint.open(base)).packed.tensors
    assert len(packed) >= 28
    assert all(old[name].equal(new[name]) and old[name].dtype == new[name].dtype for name in packed)
    kept = [row for row in range(len(old["model.embed_tokens.weight"])) if row not in report.plan.vocabulary.untrained]
    assert len(kept) == len(old["model.embed_tokens.weight"]) - 4
    assert old["model.embed_tokens.weight"][kept].equal(new["model.embed_tokens.weight"][kept])
    assert new.keys() - old.keys() == {"score.weight"}
    assert old.keys() - new.keys() == {"lm_head.weight"}
    assert config_of(tmp_path / "out")["quantization_config"]["quant_method"] == KINDS[kind][1]["quant_method"]
    if kind in NOT_RUN:
        assert "outputs were not compared (the base is quantized" in report.verdict
        assert "cannot be run here" in report.verdict
        assert report.outputs is None
    else:
        assert report.verdict.startswith("verified (bitwise): hidden states")
        assert "logits" in [row.check for row in report.rows()] or report.outputs.comparisons


@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_a_zero_adapter_is_that_of_the_plain_base(bases, sources, kind, tmp_path):
    plain = graftkit.plan(recipe(sources("llama", "bfloat16"), tmp_path / "out", LORA)).adapter
    found = graftkit.plan(recipe(bases(kind), tmp_path / "out", LORA)).adapter
    shapes = [{name: tensor.shape for name, tensor in one.tensors.items()} for one in (plain, found)]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 28


def test_an_adapter_says_in_the_verdict_that_nothing_was_run(bases, tmp_path):
    verdicts = [graftkit.apply(recipe(bases(k), tmp_path / k, LORA)).verdict for k in ("gptq", "fp8")]
    assert "outputs were not compared (the base is quantized (gptq), which cannot be run here" in verdicts[0]
    assert verdicts[1].startswith("verified (bitwise): every output of the base with the adapter")


@pytest.mark.parametrize("kind", ["awq", "fp8"])
def test_a_comparison_runs_what_can_be_run_and_says_what_was_not(bases, kind, tmp_path):
    graftkit.apply(recipe(bases(kind), tmp_path / "out", ADD))
    (tmp_path / "out/graft_report.json").unlink()
    found = graftkit.verify(str(bases(kind)), str(tmp_path / "out"))
    assert found.failures == ()
    if kind == "fp8":
        assert found.outputs.passed
        return
    assert found.outputs is None
    assert "outputs were not compared (the base is quantized (awq), which cannot be run here" in found.verdict
    with pytest.raises(RecipeError, match=r"verify\.lens: the base is quantized \(awq\)"):
        graftkit.verify(str(bases(kind)), str(tmp_path / "out"), lens=True)


@pytest.mark.parametrize("kind", ["gptq", "awq", "bnb4"])
def test_a_row_of_the_wrong_values_is_found_without_a_run(bases, kind, tmp_path):
    """Planted: an old row that changed, and a packed word that did, where no output can show it."""
    graftkit.apply(recipe(bases(kind), tmp_path / "out", ADD))
    whole = tensors_of(tmp_path / "out")
    packed = next(name for name in whole if name.endswith(("qweight", "q_proj.weight")))
    for name in ("model.embed_tokens.weight", packed):
        changed = {key: value.clone() for key, value in whole.items()}
        changed[name][1] += 1
        save_file(changed, tmp_path / "out/model.safetensors", {"format": "pt"})
        found = graftkit.verify(str(bases(kind)), str(tmp_path / "out"), leave_out=["report"])
        assert any(name in sentence for sentence in found.failures), found.failures


def test_what_looks_at_a_model_that_cannot_be_run_is_refused(bases, tmp_path):
    asked = {"verify": {"lens": True}}
    with pytest.raises(RecipeError, match=r"verify\.lens: the base is quantized \(gptq\), which cannot be run here"):
        graftkit.plan(recipe(bases("gptq"), tmp_path / "out", ADD, **asked))
    fitted = {**CLASSIFY, "init": {"scheme": "normal", "target_logit_std": 1.0}}
    with pytest.raises(RecipeError, match=r"operations\.0\.init: runs the model to make the head"):
        graftkit.plan(recipe(bases("fp8"), tmp_path / "out", fitted))


def test_paths_and_methods_that_transformers_does_not_know(bases, sources, tmp_path):
    other = copy_of(bases("gptq"), tmp_path / "other", quantization_config={"quant_method": "quux"})
    assert cannot_unpack(Checkpoint.open(other)) == "the base is quantized (quux), which transformers does not load"
    assert "quux" in graftkit.apply(recipe(other, tmp_path / "out", ADD)).verdict
    with pytest.raises(InputRejected, match="quux has no list of modules that stay plain"):
        graftkit.plan(recipe(other, tmp_path / "no", CLASSIFY))
    assert cannot_unpack(Checkpoint.open(sources("llama", "bfloat16"))) == ""


def test_blocks_that_the_loader_would_cut_otherwise_and_models_that_do_not_fit_are_not_run(
    bases, tmp_path, monkeypatch
):
    whole = {name: value for name, value in tensors_of(bases("fp8")).items() if not name.endswith("_scale_inv")}
    packed = {}
    for name, value in whole.items():
        packed |= KINDS["fp8"][0](name, value.float(), (24, 24)) if name.endswith("proj.weight") else {name: value}
    said = {**config_of(bases("fp8"))["quantization_config"], "weight_block_size": [24, 24]}
    base = copy_of(bases("fp8"), tmp_path / "base", packed, quantization_config=said)
    verdict = graftkit.apply(recipe(base, tmp_path / "out", ADD, LORA)).verdict
    assert "transformers unpacks whole blocks alone, and model.layers.0." in verdict
    monkeypatch.setattr("graftkit.running.memory.available", lambda: 10_000)
    assert "0.0 GB of memory are available" in graftkit.apply(recipe(bases("fp8"), tmp_path / "large", ADD)).verdict


# ---- what is packed, and what is not ----


def test_a_packed_table_is_refused_by_name_and_dropped_with_its_head(bases, tmp_path):
    whole = tensors_of(bases("gptq"))
    packed = KINDS["gptq"][0]("lm_head.weight", whole.pop("lm_head.weight")[:328])
    base = copy_of(bases("gptq"), tmp_path / "base", {**whole, **{k: v.contiguous() for k, v in packed.items()}})
    for operation in (ADD, REMAKE, RENAME):
        with pytest.raises(
            InputRejected, match=r"'lm_head.weight' is indexed by the vocabulary and is stored quantized \(lm_head"
        ):
            graftkit.plan(recipe(base, tmp_path / "out", operation))
    with pytest.raises(RecipeError, match="matched: .* has no trained rows"):
        graftkit.plan(recipe(base, tmp_path / "out", {**CLASSIFY, "init": "matched"}))
    result = graftkit.plan(recipe(base, tmp_path / "out", CLASSIFY)).result
    assert not [name for name in result.tensors if name.startswith("lm_head")]


def test_eight_bits_are_never_plain(bases, tmp_path):
    """Planted: an FP8 weight passed as plain, with no configuration, and with one but no scales."""
    whole = tensors_of(bases("fp8"))
    bare = copy_of(bases("fp8"), tmp_path / "bare", quantization_config=None)
    for operation in (ADD, {"op": "reinit", "layers": "last 1"}, CLASSIFY):
        with pytest.raises(InputRejected, match=r"F8_E4M3.*config.json has lost its quantization_config"):
            graftkit.plan(recipe(bare, tmp_path / "out", operation))
    del whole["model.layers.0.self_attn.q_proj.weight_scale_inv"]
    alone = copy_of(bases("fp8"), tmp_path / "alone", whole)
    with pytest.raises(InputRejected, match=r"layers.0.self_attn.q_proj.weight' has dtype F8_E4M3, the class wants"):
        graftkit.plan(recipe(alone, tmp_path / "out", ADD))
    table = copy_of(bases("fp8"), tmp_path / "table", {**tensors_of(bases("fp8")), "lm_head.weight_scale_inv": whole.pop("model.layers.1.self_attn.q_proj.weight_scale_inv"), "lm_head.weight": tensors_of(bases("fp8"))["lm_head.weight"].to(whole["model.layers.0.self_attn.q_proj.weight"].dtype)})  # fmt: skip
    with pytest.raises(InputRejected, match="'lm_head.weight' is indexed by the vocabulary and is stored quantized"):
        graftkit.plan(recipe(table, tmp_path / "out", ADD))
    with pytest.raises(RecipeError, match="matched: .* has no trained rows"):
        graftkit.plan(recipe(table, tmp_path / "out", {**CLASSIFY, "init": "matched"}))


def test_what_is_missing_or_strange_is_so_beside_packed_weights_too(bases, tmp_path):
    whole = tensors_of(bases("awq"))
    norm = "model.layers.0.input_layernorm.weight"
    lost = copy_of(bases("awq"), tmp_path / "lost", {k: v for k, v in whole.items() if k != norm})
    with pytest.raises(InputRejected, match=rf"1 tensor\(s\) are missing .*{norm}"):
        graftkit.plan(recipe(lost, tmp_path / "out", ADD))
    gone = {k: v for k, v in whole.items() if "layers.0.mlp.up_proj" not in k}
    with pytest.raises(InputRejected, match="layers.0.mlp.up_proj.weight"):
        graftkit.plan(recipe(copy_of(bases("awq"), tmp_path / "gone", gone), tmp_path / "out", ADD))
    strange = {**whole, "model.norm.scales": whole["model.layers.0.mlp.up_proj.scales"].clone()}
    with pytest.raises(InputRejected, match="1 tensor of no class of this config: model.norm.scales"):
        graftkit.plan(recipe(copy_of(bases("awq"), tmp_path / "strange", strange), tmp_path / "out", ADD))
    short = {**whole, norm: whole[norm][:16].clone()}
    with pytest.raises(InputRejected, match=r"input_layernorm.weight' has shape \[16\] on disk"):
        graftkit.plan(recipe(copy_of(bases("awq"), tmp_path / "short", short), tmp_path / "out", ADD))


def test_an_edited_scale_changes_what_the_model_does(bases, tmp_path):
    halve = {
        "op": "edit_tensors",
        "steps": [{"scale": {"tensors": [".*[.]0[.]self_attn[.]q_proj[.]scales"], "factor": 0.5}}],
    }
    plan = graftkit.plan(recipe(bases("gptq"), tmp_path / "out", halve))
    assert plan.promise.strength.word == "intentional"


@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_an_inspection_counts_weights_and_not_what_they_are_packed_in(bases, sources, kind):
    found = graftkit.inspect(str(bases(kind)))
    assert found.parameters == graftkit.inspect(str(sources("llama", "bfloat16"))).parameters
    method = KINDS[kind][1]["quant_method"]
    assert any(line.startswith(f"14 weights packed by {method}, in ") for line in found.findings)


def test_experts_of_a_mixture_are_packed_one_by_one(sources, tmp_path):
    base = quantized(sources("mixtral", "bfloat16"), tmp_path / "base", "fp8")
    structure = account(Checkpoint.open(base))
    assert "model.layers.0.mlp.experts" in structure.packed.tensors.values()
    assert structure.unknown == ()
    assert graftkit.apply(recipe(base, tmp_path / "out", ADD)).outputs.passed


# ---- a new head beside a quantizer ----


@pytest.mark.parametrize("kind", LLAMA_KINDS)
def test_the_quantizer_is_told_to_leave_a_new_head_as_it_is(bases, kind, tmp_path):
    said = config_of(bases(kind))["quantization_config"]
    result = graftkit.plan(recipe(bases(kind), tmp_path / "out", CLASSIFY)).result
    now = result.config["quantization_config"]
    field = {"gptq": None, "bnb4": "llm_int8_skip_modules", "bnb8": "llm_int8_skip_modules", "nvfp4": "ignore"}.get(
        kind, "modules_to_not_convert"
    )
    assert now == ({**said, field: [*(said.get(field) or []), "score"]} if field else said)


@pytest.mark.parametrize("listed", [["lm_head"], ["lm_head", "score"]])
def test_a_quantizer_packs_the_head_unless_it_is_told(bases, listed, tmp_path):
    """Its own class on the meta device, as on a GPU: with the config that is written the head is linear, else it is not."""
    import torch
    from transformers import LlamaForSequenceClassification
    from transformers.quantizers.auto import AutoHfQuantizer

    said = {**config_of(bases("fp8"))["quantization_config"], "modules_to_not_convert": ["lm_head"]}
    base = copy_of(bases("fp8"), tmp_path / "base", quantization_config=said)
    config = graftkit.plan(recipe(base, tmp_path / "out", CLASSIFY)).result.config["quantization_config"]
    assert config["modules_to_not_convert"] == ["lm_head", "score"]
    with torch.device("meta"):
        model = LlamaForSequenceClassification.config_class(**{**config_of(base), "quantization_config": None})
        model = LlamaForSequenceClassification(model)
        quantizer = AutoHfQuantizer.from_config({**config, "modules_to_not_convert": listed}, pre_quantized=True)
        quantizer._process_model_before_weight_loading(model)
    assert (type(model.score) is torch.nn.Linear) == ("score" in listed)
    assert type(model.model.layers[0].mlp.up_proj) is not torch.nn.Linear


def test_a_class_with_other_names_for_the_backbone_is_refused(bases, tmp_path):
    answer = {"op": "replace_head", "task": "question_answering"}
    with pytest.raises(InputRejected, match="LlamaForQuestionAnswering: calls 'model.*speak of tensors by name"):
        graftkit.plan(recipe(bases("gptq"), tmp_path / "out", answer))
