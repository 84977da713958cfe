"""Adapters as they are written: loaded by peft alone, on the base that they name, they change nothing."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.recipes import recipe
from support.sweeps import load_script

from graftkit.adapter_verification import verify_adapter
from graftkit.checkpoint import reading
from graftkit.engine import apply, plan
from graftkit.errors import InputRejected, RecipeError

TOKENS = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}


@pytest.fixture
def base(sources):
    return sources


def lora(**fields):
    return {"op": "add_lora", "r": 4, "lora_alpha": 8, **fields}


def reloaded(output, **options):
    """The base that the adapter names, alone and with the adapter, as a user loads them."""
    import transformers
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(output / "adapter")
    named = json.loads(open(f"{config.base_model_name_or_path}/config.json").read())
    cls = getattr(transformers, named["architectures"][0])
    alone = cls.from_pretrained(config.base_model_name_or_path).eval()
    wrapped = PeftModel.from_pretrained(
        cls.from_pretrained(config.base_model_name_or_path), output / "adapter", **options
    )
    return alone, wrapped.eval()


def outputs(model, ids=None):
    ids = torch.arange(4, 36)[None] if ids is None else ids
    extra = {"decoder_input_ids": ids[:, :8]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = model(input_ids=ids, output_hidden_states=True, **extra)
    return found.logits if "logits" in found else found.last_hidden_state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "t5", "bert_base"])
def test_base_and_adapter_give_the_bits_of_the_base_also_after_merging(base, family, dtype, tmp_path):
    report = apply(recipe(base(family, dtype), tmp_path / "out", lora(target_modules="all-linear")))
    check = report.checks[0]
    assert check.gap.bitwise
    assert check.merged == "bitwise"
    assert check.gradients.failures == check.gradients.unreached == check.gradients.blocked == ()
    assert not list((tmp_path / "out").glob("*.safetensors"))  # no base is written: it is the source's
    alone, wrapped = reloaded(tmp_path / "out")
    before = outputs(alone)
    assert outputs(wrapped).equal(before)
    assert outputs(wrapped.merge_and_unload()).equal(before)


def test_a_is_peft_s_and_depends_on_seed_and_name_alone(base, tmp_path):
    source = base("llama")
    off = {"verify": {"outputs": False}}
    for name, fields, others in (
        ("one", {}, {"seed": 1}),
        ("fewer", {"target_modules": ["v_proj"]}, {"seed": 1}),
        ("other", {}, {"seed": 2}),
        ("gaussian", {"init_lora_weights": "gaussian"}, {"seed": 1}),
    ):
        apply(recipe(source, tmp_path / name, lora(**fields), **off, **others))
    one, fewer, other, gaussian = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("one", "fewer", "other", "gaussian")
    )
    assert all(one[key].equal(value) for key, value in fewer.items())
    a = [key for key in one if "lora_A" in key]
    assert not any(one[key].equal(other[key]) for key in a)
    assert all(not one[key].any() for key in one if "lora_B" in key)
    for key in a:
        bound = one[key].shape[1] ** -0.5  # kaiming_uniform with a = sqrt 5
        assert 0.9 * bound < one[key].abs().max() <= bound
    assert torch.cat([gaussian[key].flatten() for key in a]).std() == pytest.approx(1 / 4, rel=0.05)


def test_a_zero_b_adapter_is_made_without_reading_a_weight(base, tmp_path, monkeypatch):
    source = base("llama", "bfloat16")
    opened = []
    real = reading.read_range
    monkeypatch.setattr(reading, "read_range", lambda path, *rest: (opened.append(path), real(path, *rest))[1])
    report = apply(recipe(source, tmp_path / "out", lora(), verify={"outputs": False}))
    assert not [path for path in opened if path.is_relative_to(source)]
    assert report.checks[0].not_compared == "verify.outputs is off"
    assert report.checks[0].base.weights == {}


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "t5", "gemma2", "llava"])
def test_new_tokens_are_trained_in_every_table_of_their_own(base, family, tmp_path):
    report = apply(recipe(base(family), tmp_path / "out", TOKENS, lora()))
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    ids = sorted(report.plan.new_tokens.values())
    untied = family in {"llama", "llava"}
    assert all(value == ids for value in config["trainable_token_indices"].values())
    tensors = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    deltas = {key: value for key, value in tensors.items() if "trainable_tokens_delta" in key}
    assert len(deltas) == len(config["trainable_token_indices"]) == (2 if untied else 1)
    assert os.path.samefile(config["base_model_name_or_path"], tmp_path / "out")
    assert report.checks[0].gap.bitwise
    alone, wrapped = reloaded(tmp_path / "out")
    table = alone.get_input_embeddings().weight
    assert any(value.equal(table[ids]) for value in deltas.values())
    probe = torch.tensor([[*ids, 5, 6, 7, *ids]])
    assert outputs(wrapped, probe).equal(outputs(alone, probe))


def test_new_rows_behind_the_old_table_are_found_too(base, tmp_path):
    source = base("llama", tokens=320, rows=320)
    apply(recipe(source, tmp_path / "out", {**TOKENS, "pad_to_multiple_of": 8}, lora()))
    deltas = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert deltas["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"].shape == (2, 32)


def test_a_biased_output_table_is_refused_since_peft_drops_the_bias(base, tmp_path):
    with pytest.raises(RecipeError, match="peft would drop the bias of cls.predictions.decoder"):
        plan(recipe(base("bert"), tmp_path / "out", TOKENS, lora()))
    report = apply(recipe(base("bert"), tmp_path / "out", TOKENS, lora(train_new_tokens=False)))
    assert report.checks[0].gap.bitwise


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_one_side_of_a_tied_pair_is_untied_by_copy(base, target, tmp_path):
    apply(recipe(base("llama_tied"), tmp_path / "out", lora(target_modules=[target, "q_proj"])))
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert tensors["lm_head.weight"].equal(tensors["model.embed_tokens.weight"])
    alone, wrapped = reloaded(tmp_path / "out")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    before = outputs(wrapped)
    assert not before.equal(outputs(alone))
    assert (outputs(wrapped.merge_and_unload()) - before).abs().max() < 1e-4


def test_a_tie_that_the_class_insists_on_is_refused(base, tmp_path):
    with pytest.raises(InputRejected, match="whatever config.json says"):
        plan(recipe(base("t5"), tmp_path / "out", lora(target_modules=["lm_head"])))


@pytest.mark.parametrize(
    ("architecture", "heads", "outputs"),
    [
        ("ModernBertForSequenceClassification", ["head", "classifier"], True),
        ("BartForSequenceClassification", ["classification_head"], False),  # it pools at </s>, which few probes hold
    ],
)
def test_a_head_outside_peft_s_list_is_saved_by_its_real_name(architecture, heads, outputs, tmp_path):
    from support.tiny import build as tiny

    tiny(architecture, tmp_path / "base")
    report = apply(recipe(tmp_path / "base", tmp_path / "out", lora(), verify={"outputs": outputs}))
    assert not outputs or report.checks[0].gap.bitwise
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert set(heads) <= set(config["modules_to_save"])
    tensors = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    source = load_file(tmp_path / "base/model.safetensors")
    saved = [name for name in source if name.startswith(tuple(f"{head}." for head in heads))]
    assert saved
    assert all(tensors[f"base_model.model.{name}"].equal(source[name]) for name in saved)


def test_ranks_above_a_dimension_biases_and_other_fields_of_peft(base, tmp_path):
    report = apply(recipe(base("llama"), tmp_path / "a", lora(r=100, config={"bias": "all", "lora_bias": True})))
    assert report.checks[0].gap.bitwise
    assert report.checks[0].merged.startswith("not possible")
    report = apply(recipe(base("gpt2"), tmp_path / "b", lora(r=40, config={"bias": "all"})))
    tensors = load_file(tmp_path / "b/adapter/adapter_model.safetensors")
    source = load_file(base("gpt2") / "model.safetensors")
    key = "base_model.model.transformer.h.0.attn.c_attn.base_layer.bias"
    assert tensors[key].equal(source["transformer.h.0.attn.c_attn.bias"])


def test_one_adapter_a_recipe_and_nothing_changes_its_base_afterwards(base, tmp_path):
    with pytest.raises(RecipeError, match="operations.1: a recipe makes one adapter"):
        plan(recipe(base("llama"), tmp_path / "out", lora(), lora()))
    with pytest.raises(RecipeError, match="operations.1: extend_vocab changes the base of the adapter made before it"):
        plan(recipe(base("llama"), tmp_path / "out", lora(), TOKENS))


def test_a_quantized_base_gets_an_adapter_and_the_report_says_what_was_not_run(base, tmp_path):
    source = tmp_path / "base"
    shutil.copytree(base("llama", "bfloat16"), source)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (source / "config.json").write_text(json.dumps(config))
    report = apply(recipe(source, tmp_path / "out", lora()))
    assert "the base is quantized" in report.checks[0].not_compared
    with pytest.raises(RecipeError, match="needs the weights, and the base is quantized"):
        plan(recipe(source, tmp_path / "no", lora(init_lora_weights="pissa")))


def test_a_malformed_tokenizer_stops_what_writes_a_base_and_nothing_else(base, tmp_path):
    source = tmp_path / "base"
    shutil.copytree(base("llama"), source)
    (source / "tokenizer.json").write_text("{")
    assert plan(recipe(source, tmp_path / "out", lora())).adapter is not None
    with pytest.raises(InputRejected, match="tokenizer.json:1:2"):
        plan(recipe(source, tmp_path / "out", lora(init_lora_weights="pissa")))


@pytest.mark.parametrize("stored", ["float8_e4m3fn", "uint8"])
def test_weights_that_are_stored_quantized_are_read_by_no_part_of_an_adapter(base, stored, tmp_path):
    source = tmp_path / "base"
    shutil.copytree(base("llama", "bfloat16"), source)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        whole = tensors[name]
        tensors[name] = (
            whole.to(torch.float8_e4m3fn) if stored != "uint8" else whole.view(torch.uint8).flatten()[::4, None]
        )
    save_file({name: value.contiguous() for name, value in tensors.items()}, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True} if stored == "uint8" else {"quant_method": "fp8"}
    config["quantization_config"] = method
    (source / "config.json").write_text(json.dumps(config))
    apply(recipe(source, tmp_path / "out", lora(target_modules=["q_proj"], modules_to_save=["lm_head"])))
    with pytest.raises(InputRejected, match=r"k_proj.weight is stored quantized \((F8_E4M3|U8)\)"):
        plan(recipe(source, tmp_path / "no", lora(target_modules=["q_proj"], modules_to_save=["k_proj"])))
    with pytest.raises(InputRejected, match="q_proj.weight is stored quantized"):
        osf = {"op": "add_adapter", "peft_type": "OSF", "target_modules": ["q_proj"]}
        plan(recipe(source, tmp_path / "no", osf))


def test_an_adapter_for_more_than_memory_holds_comes_from_headers_and_says_what_was_not_run(tmp_path):
    layers = 60  # 390 GB; the benchmark has all 126 of 405 B
    load_script("bench_adapters").header_set(tmp_path / "base", layers)
    report = apply(recipe(tmp_path / "base", tmp_path / "out", lora(r=1, target_modules=["q_proj"])))
    check = report.checks[0]
    assert "GB of weights, and" in check.not_compared
    assert (check.tensors, check.base.weights) == (2 * layers, {})
    assert sum(path.stat().st_blocks for path in (tmp_path / "base").glob("*.safetensors")) < 10_000  # still holes


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_zero_b_is_bitwise_in_the_other_dtypes_too(base, dtype, tmp_path):
    check = apply(recipe(base("llama", dtype), tmp_path / "out", lora())).checks[0]
    assert (check.gap.bitwise, check.merged) == (True, "bitwise")


def test_what_the_probes_do_not_reach_is_named(base, tmp_path):
    towers = ["vision_tower.*q_proj", "language_model.*q_proj"]
    report = apply(recipe(base("llava"), tmp_path / "out", lora(target_modules=towers)))
    found = report.checks[0].gradients
    assert found.alive == 2
    assert [name.split(".")[1] for name in found.unreached] == ["vision_tower"] * 2
    assert any(row[1] == "not run by the probe" and "vision_tower" in row[2] for row in report.rows())
    said = {entry["what"]: entry["why"] for entry in report.to_json()["not_checked"]}
    assert said[f"Gradients of {', '.join(found.unreached)}"] == "the probes do not run them"


@pytest.mark.parametrize(
    ("below", "named"), [("", "./project/model"), ("project", "./model"), ("other/run", "../../project/model")]
)
def test_the_base_is_named_by_the_way_from_the_working_folder(below, named, base, tmp_path, monkeypatch):
    shutil.copytree(base("llama"), tmp_path / "project/model")
    (tmp_path / "other/run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / below)
    source = os.path.relpath(tmp_path / "project/model")
    apply(recipe(source, tmp_path / "out", lora(), verify={"outputs": False}))
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == named
    assert plan(recipe(tmp_path / "project/model", "out2", lora())).adapter.config == config
    monkeypatch.chdir("/")
    there = str(tmp_path / "project/model")
    assert plan(recipe(there, tmp_path / "out2", lora())).adapter.config["base_model_name_or_path"] == there


def test_a_base_that_was_written_with_its_adapter_is_found_from_elsewhere(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    apply(recipe(base("llama"), "out", TOKENS, lora()))
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "./out"
    (tmp_path / "out").rename(tmp_path / "moved")
    assert verify_adapter("moved/adapter").verdict.startswith("verified")
    monkeypatch.chdir("/")
    assert verify_adapter(tmp_path / "moved/adapter").verdict.startswith("verified")
    (tmp_path / "moved/graft_report.json").unlink()
    assert not verify_adapter(tmp_path / "moved/adapter").verdict.startswith("verified")
