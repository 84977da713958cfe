"""resize_adapter: larger ranks leave every product as it was, smaller ones lose what they must and no more."""

import json
import shutil

import pytest
from support.adapters import edit_adapter, load_adapted, make_adapter

from graftkit import engine
from graftkit.adapter_verification import verify_adapter
from graftkit.errors import InputRejected, RecipeError
from graftkit.verification.adapters.resized import compare_resized

LLAMA = "LlamaForCausalLM"

#: Two directions, each at most the whole product, and each of two factors that are rounded to float32.
ROUNDED = 2 * 2 * 2.0**-24
CONFIGS = {
    "llama, rsLoRA, patterns": (LLAMA, {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "use_rslora": True,
                                        "rank_pattern": {"q_proj": 6}, "alpha_pattern": {"k_proj": 3}}),
    "llama, embedding, DoRA, head": (LLAMA, {"target_modules": ["v_proj", "embed_tokens"], "use_dora": True,
                                             "modules_to_save": ["lm_head"]}),
    "mixtral, experts": ("MixtralForCausalLM", {"target_modules": ["q_proj"],
                                                "target_parameters": ["gate_up_proj", "down_proj"]}),
}  # fmt: skip


def resize(base, adapter, rank, output):
    operation = {"op": "resize_adapter", "adapter": str(adapter), "r": rank}
    return engine.apply({"version": 1, "base_model": str(base), "operations": [operation], "output": str(output)})


@pytest.mark.parametrize(("class_name", "config"), CONFIGS.values(), ids=CONFIGS)
def test_a_larger_rank_keeps_every_product(tmp_path, class_name, config):
    import torch

    base, adapter = make_adapter(tmp_path, class_name, **config)
    report = resize(base, adapter, 9, tmp_path / "out")
    (check,) = report.checks
    assert all(product.exact and product.lost == 0 for product in check.products)
    assert check.changed <= check.allowed < 1e-3 < check.effect
    written = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert (written["r"], written.get("rank_pattern")) == (9, None)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        old, new = (
            load_adapted(base, folder, class_name)(ids).logits.double()
            for folder in (adapter, tmp_path / "out/adapter")
        )
    assert (old - new).norm() <= check.allowed * old.norm()


@pytest.mark.parametrize(("class_name", "config"), CONFIGS.values(), ids=CONFIGS)
def test_a_smaller_rank_loses_no_more_than_it_must(tmp_path, class_name, config):
    base, adapter = make_adapter(tmp_path, class_name, **config)
    report = resize(base, adapter, 2, tmp_path / "out")
    (check,) = report.checks
    assert all(product.lost > 0 for product in check.products)
    for name, product in ((product.name, product) for product in check.products):
        assert product.lost**0.5 <= product.least**0.5 + ROUNDED, name
    lost = report.figures["operations.0.resize_adapter"]["lost_energy"]
    assert len(lost) == len(check.products)
    assert max(lost.values()) == pytest.approx(max(product.least for product in check.products), rel=1e-9)


def test_new_and_empty_directions_have_one_zero_factor(tmp_path):
    from safetensors.torch import load_file

    base, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj"])

    def thin(tensors):  # rank 1 within rank 4
        return {
            name: value * (1 if "lora_A" in name else 0) + ("lora_B" in name) * 0.1 for name, value in tensors.items()
        }

    thinned = edit_adapter(adapter, tmp_path / "thin", thin)
    for rank in (3, 8):
        resize(base, thinned, rank, tmp_path / f"out{rank}")
        tensors = load_file(tmp_path / f"out{rank}/adapter/adapter_model.safetensors")
        for name, a in tensors.items():
            if "lora_A" in name:
                b = tensors[name.replace("lora_A", "lora_B")]
                assert a.shape[0] == b.shape[1] == rank
                assert (a.norm(dim=1) > 0).all()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("llama"), LLAMA, target_modules=["q_proj", "o_proj"])


def test_the_same_rank_is_an_error(tmp_path, llama):
    with pytest.raises(RecipeError, match="has rank 4 already"):
        resize(*llama, 4, tmp_path / "out")


def nudged(value):
    """The values with the first of them one unit in the last place larger."""
    import torch

    value = value.clone()
    value.view(-1)[0] = torch.nextafter(value.view(-1)[0], torch.tensor(torch.inf, dtype=value.dtype))
    return value


FAULTS = {
    "alpha changed": ({"lora_alpha": 9}, None),
    "a sign": ({}, lambda name, value: -value if "0.self_attn.q_proj.lora_B" in name else value),
    "rows swapped": (
        {},
        lambda name, value: value[[1, 0, *range(2, 8)]] if "1.self_attn.o_proj.lora_A" in name else value,
    ),
    "a last bit": ({}, lambda name, value: nudged(value) if "0.self_attn.q_proj.lora_A" in name else value),
    "a column that is not zero": (
        {},
        lambda name, value: value + 1e-4 if "1.self_attn.o_proj.lora_B" in name else value,
    ),
}


@pytest.mark.parametrize(("fields", "change"), FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_caught(tmp_path, llama, fields, change):
    base, adapter = llama
    resize(base, adapter, 8, tmp_path / "out")
    tensors = (
        (lambda held: {name: change(name, value).contiguous() for name, value in held.items()}) if change else None
    )
    wrong = edit_adapter(tmp_path / "out/adapter", tmp_path / "wrong", tensors, **fields)
    assert compare_resized(base, adapter, tmp_path / "out/adapter").failures == ()
    assert "loses" in compare_resized(base, adapter, wrong).failures[0]
    shutil.rmtree(wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_smaller_rank_may_lose_no_more_than_the_rounding_of_its_dtype(tmp_path, llama, dtype):
    import torch

    base, adapter = llama
    wide = edit_adapter(
        adapter,
        tmp_path / "stored",
        lambda held: {name: value.to(getattr(torch, dtype)) for name, value in held.items()},
    )
    check = resize(base, wide, 2, tmp_path / "out").checks[0]
    assert all(product.shrunk for product in check.products)

    def larger(held):  # by so many units as no rounding makes
        return {
            name: value * (1 + 8 * torch.finfo(value.dtype).eps) if "lora_B" in name else value
            for name, value in held.items()
        }

    wrong = edit_adapter(tmp_path / "out/adapter", tmp_path / "wrong", larger)
    assert "off the nearest product of rank 2" in compare_resized(base, wide, wrong).failures[0]
    empty = edit_adapter(
        tmp_path / "out/adapter", tmp_path / "empty", lambda held: {name: value * 0 for name, value in held.items()}
    )
    assert "loses 1 of its energy" in compare_resized(base, wide, empty).failures[0]


def test_what_holds_no_factor_stays_to_the_bit(tmp_path):
    base, adapter = make_adapter(tmp_path, LLAMA, **CONFIGS["llama, embedding, DoRA, head"][1])
    resize(base, adapter, 8, tmp_path / "out")
    for part in ("lora_magnitude_vector", "lm_head"):
        change = {part: lambda held, part=part: {n: nudged(v) if part in n else v for n, v in held.items()}}[part]
        wrong = edit_adapter(tmp_path / "out/adapter", tmp_path / part, change)
        (failure,) = compare_resized(base, adapter, wrong).failures
        assert failure.startswith("tensors: ")
        assert part in failure


def test_outputs_show_what_no_tensor_does(tmp_path):
    base, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj"], trainable_token_indices=[3, 4])
    resize(base, adapter, 8, tmp_path / "out")
    wrong = edit_adapter(tmp_path / "out/adapter", tmp_path / "wrong", trainable_token_indices={"embed_tokens": [3, 5]})
    report = compare_resized(base, adapter, wrong)
    assert "changed by up to" in report.failures[0]
    assert report.failures[0].startswith("outputs: hidden_states")
    assert 0 < report.noise < report.allowed < report.changed


def test_directions_in_another_order_are_within_the_old_adapter_s_own_noise(tmp_path, llama):
    base, adapter = llama

    def reverse(held):
        return {name: value.flip(0 if "lora_A" in name else 1).contiguous() for name, value in held.items()}

    report = compare_resized(base, adapter, edit_adapter(adapter, tmp_path / "reversed", reverse))
    assert {failure.split(":")[0] for failure in report.failures} == {"products"}  # not the same bits
    assert report.changed <= report.allowed


def test_the_noise_of_an_adapter_leaves_it_as_it_was(llama):
    from graftkit.running.peft_loading import load_adapted
    from graftkit.running.reference import run_loaded
    from graftkit.verification.adapters.own_noise import own_noise

    base, adapter = llama
    loaded = load_adapted(base, adapter)
    factors = {name: value.clone() for name, value in loaded.model.named_parameters() if "lora_" in name}
    before = run_loaded(loaded, base, None, 0, 500, {}, lambda _: None)
    noise = own_noise(loaded.model, before)
    assert 0 < noise["logits"] < 1e-3
    assert all(value.equal(factors[name]) for name, value in loaded.model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("rank", [2, 9])
def test_on_a_quantized_base_products_are_compared_and_outputs_are_not(tmp_path, llama, rank):
    base, adapter = llama
    quantized = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    (check,) = resize(quantized, adapter, rank, tmp_path / "out").checks
    assert "the base is quantized" in check.not_compared
    assert max(product.lost for product in check.products) < (1e-300 if rank == 9 else 1)
    assert len(check.products) == len(resize(base, adapter, rank, tmp_path / "plain").checks[0].products)


def test_a_pattern_that_fits_no_target_is_named(tmp_path):
    base, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj"], alpha_pattern={"^q_proj": 100})
    report = resize(base, adapter, 6, tmp_path / "out")
    assert any("alpha_pattern: '^q_proj' matches no target" in note for note in report.plan.outcomes[0].notes)
    assert "alpha_pattern" not in json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())


def test_tensors_that_a_partitioned_model_left_empty_are_refused_by_every_reader(tmp_path):
    base, adapter = make_adapter(tmp_path, LLAMA, target_modules=["q_proj"], modules_to_save=["lm_head"])

    def left(tensors):
        return {name: value.flatten()[:0].clone() if "lm_head" in name else value for name, value in tensors.items()}

    empty = edit_adapter(adapter, tmp_path / "empty", left)
    words = r"1 tensor of shape \[0\]: base_model.model.lm_head.weight; saved from a partitioned model .* gather"
    with pytest.raises(InputRejected, match=words):
        resize(base, empty, 2, tmp_path / "out")
    with pytest.raises(InputRejected, match=words):
        verify_adapter(str(empty), str(base))
    assert not (tmp_path / "out").exists()
