"""Inits that start from the weights: the residual base is rounded once, the offset form cancels on the untouched base."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import recipes
from support.families import build

from graftkit.adapter_verification import verify_adapter
from graftkit.engine import apply, execute, plan
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.operations.adapters.tensors import AdapterMaker

pytestmark = pytest.mark.cross_section


@pytest.fixture
def base(sources):
    return sources


def recipe(source, output, **fields):
    operation = {"op": "add_lora", "r": 4, "lora_alpha": 8, **fields}
    return recipes.recipe(source, output, operation)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_the_residual_base_and_the_adapter_are_the_source_up_to_one_rounding(base, init, family, dtype, tmp_path):
    report = apply(recipe(base(family, dtype), tmp_path / "out", init_lora_weights=init))
    check = report.checks[0]
    assert report.plan.promise.strength.word == "rounded"
    assert check.weights.roundings <= 1
    assert 0 < check.gap.relative < (1e-5 if dtype == "float32" else 0.05)
    assert "init_lora_weights" not in json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
def test_the_offset_form_leaves_the_base_and_its_halves_cancel(base, init, dtype, tmp_path):
    fields = {"init_lora_weights": init, "exact": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}}
    report = apply(recipe(base("llama", dtype), tmp_path / "out", **fields))
    check = report.checks[0]
    assert not report.plan.writes_base
    assert report.plan.promise.strength.word == "exact"
    assert check.weights.word == "exact"
    assert check.gap.relative < 1e-6
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config.get("init_lora_weights", True)) == (8, {"q_proj": 4}, True)
    assert config["lora_alpha"] / config["r"] ** 0.5 == pytest.approx(8 / 4**0.5)


def test_pissa_takes_out_the_principal_part_as_peft_does(base, tmp_path):
    import transformers
    from peft import LoraConfig, get_peft_model

    source = base("llama", "float32")
    apply(recipe(source, tmp_path / "out", init_lora_weights="pissa"))
    model = transformers.LlamaForCausalLM.from_pretrained(source)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights="pissa")
    theirs = get_peft_model(model, config).state_dict()
    ours = load_file(tmp_path / "out/model.safetensors")
    before, compared = load_file(source / "model.safetensors"), 0
    for name, value in ours.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.base_layer.weight"
        if key in theirs:
            assert (theirs[key] - value).abs().max() < truncation_error(before[name], 4)
            compared += 1
    assert compared


def truncation_error(weight, rank):
    """How far a decomposition in float32, which is exact for a matrix near ``weight``, may be off in its part of this rank."""
    values = torch.linalg.svdvals(weight.double())
    near = max(weight.shape) * torch.finfo(torch.float32).eps / 2 * values[0]
    return near * (1 + values[rank - 1] / (values[rank - 1] - values[rank]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dora_s_magnitudes_are_what_the_forward_divides_by(base, dtype, tmp_path):
    report = apply(recipe(base("llama", dtype), tmp_path / "out", use_dora=True))
    assert report.checks[0].gap.relative < 1e-6


def test_dora_on_a_row_of_norm_zero_is_refused_by_name(tmp_path):
    (tmp_path / "base").mkdir()
    source = build("llama", tmp_path / "base")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][5] = 0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputRejected, match=r"layers.1.self_attn.o_proj.weight has 1 output\(s\) of norm zero, the first is 5"
    ):
        apply(recipe(source, tmp_path / "out", use_dora=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("llama", {"init_lora_weights": "pissa", "r": 40}, "is 32 x 32, smaller than the rank 40"),
        ("mixtral", {"init_lora_weights": "pissa"}, "holds fused experts"),
        ("llama", {"init_lora_weights": "olora", "target_modules": ["embed_tokens"]}, "is an embedding"),
        ("llama", {"init_lora_weights": "orthogonal", "r": 3}, "even ranks"),
        ("llama", {"init_lora_weights": "loftq"}, "quantizes the base"),
        ("llama", {"init_lora_weights": "pissa", "use_dora": True}, "starts as the identity from B = 0"),
    ],
)
def test_what_cannot_start_so_is_refused_with_the_reason(base, family, fields, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        plan(recipe(base(family, "float32"), tmp_path / "out", **fields))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "mica"])
def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(init, value, tmp_path):
    (tmp_path / "base").mkdir()
    source = build("llama", tmp_path / "base")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, :2] = value
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    made = recipe(source, tmp_path / "out", init_lora_weights=init)
    with pytest.raises(
        InputRejected, match=r"layers\.1\.mlp\.up_proj\.weight cannot be decomposed, 2 of its values are not"
    ):
        apply({**made, "allow_nonfinite": True})
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("exact", [True, False])
def test_a_factor_that_is_wrong_is_caught(base, exact, tmp_path, monkeypatch):
    planned = plan(recipe(base("llama", "float32"), tmp_path / "out", init_lora_weights="pissa", exact=exact))
    real = AdapterMaker._values

    def wrong(self, key, entry):
        values = real(self, key, entry)
        return (
            values * (1 + 1e-3 * torch.arange(values.shape[-1]))
            if key.endswith("1.mlp.up_proj.lora_B.weight")
            else values
        )

    monkeypatch.setattr(AdapterMaker, "_values", wrong)
    words = "do not cancel" if exact else "from the source's weight|is not the base's"
    with pytest.raises(VerificationFailed, match=words):
        execute(planned)


HEAD = {"op": "replace_head", "task": "sequence_classification", "labels": ["x", "y"], "init": "normal"}
TOKENS = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}


@pytest.mark.parametrize("before", [[TOKENS], [HEAD], [TOKENS, HEAD]], ids=["tokens", "head", "both"])
def test_behind_new_tokens_and_another_head_the_rest_is_still_the_source_s(before, tmp_path):
    (tmp_path / "base").mkdir()
    source = build("llama", tmp_path / "base", tokens=331)  # no free rows: the tables grow
    made = recipe(source, tmp_path / "out", init_lora_weights="pissa")
    report = apply({**made, "operations": [*before, *made["operations"]]})
    check = next(check for check in report.checks if check.name == "adapter")
    assert check.residual.backbone == (HEAD in before)
    assert check.weights.worst < 1e-6
    assert verify_adapter(str(tmp_path / "out/adapter")).failures == ()
    weights = tmp_path / "out/model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][3] += 0.01
    save_file(tensors, weights, metadata={"format": "pt"})
    found = verify_adapter(str(tmp_path / "out/adapter")).found
    assert "layers.1.mlp.up_proj" in found["weights"][0]
    assert found["base"]


def test_dora_on_a_table_has_the_norms_of_its_columns(base, tmp_path):
    report = apply(recipe(base("llama", "float32"), tmp_path / "out", use_dora=True, target_modules=["embed_tokens"]))
    assert report.checks[0].gap.relative < 1e-6
    key = "base_model.model.model.embed_tokens.lora_magnitude_vector"
    norms = load_file(base("llama", "float32") / "model.safetensors")["model.embed_tokens.weight"].norm(dim=0)
    assert torch.allclose(load_file(tmp_path / "out/adapter/adapter_model.safetensors")[key], norms)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"lora_drop": 0.1}, "'lora_drop' is not a field of LORA; did you mean"),
        ({"inference_mode": True}, "config.inference_mode: is filled in; leave it out"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"alora_invocation_tokens": [5]}, "behind those tokens alone"),
        ({"loftq_config": {"loftq_bits": 4}}, "init_lora_weights is not loftq"),
    ],
)
def test_other_fields_of_peft_are_validated(base, config, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        plan(recipe(base("llama", "float32"), tmp_path / "out", config=config))


def test_behind_what_changes_outputs_on_purpose_the_base_before_it_is_the_reference(base, tmp_path):
    made = recipe(base("llama", "float32"), tmp_path / "out", init_lora_weights="pissa", target_modules=["q_proj"])
    blank = {"op": "reinit", "parameters": ["model.layers.1.self_attn.q_proj.weight"], "init": "kaiming_normal"}
    report = apply({**made, "operations": [blank, *made["operations"]]})
    check = report.checks[0]
    assert not check.residual.from_source
    assert check.gap.relative < 1e-5
    assert check.weights.worst < 1e-6
    assert "is not there any more" in verify_adapter(str(tmp_path / "out/adapter")).check.not_compared


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"exclude_modules": ["q_prj"]}, "exclude_modules: 'q_prj' matches no module; near names: q_proj"),
        ({"modules_to_save": ["lm_hed"]}, "modules_to_save: 'lm_hed' matches no module; near names: lm_head"),
        ({"config": {"trainable_token_indices": [5, 100000]}}, "100000 is no row of model.embed_tokens.weight"),
    ],
)
def test_names_and_rows_that_are_not_there_are_refused(base, fields, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        plan(recipe(base("llama", "float32"), tmp_path / "out", **fields))
