"""combine_adapters: what peft makes of the combination is the weighted sum of its sources, whatever their ranks, alphas and targets."""

import json
import shutil

import pytest
from support.adapters import edit_adapter, load_adapted, make_adapter
from support.merges import UNITS

from graftkit import engine
from graftkit.initializers.combination import Combination
from graftkit.verification.adapters.combined import Source, compare_with_sources

pytestmark = pytest.mark.numerical

LLAMA = "LlamaForCausalLM"


def combine(model, sources, output, combination="cat", *, check=True, **fields):
    adapters = [{"path": str(path), "weight": weight} for path, weight in sources]
    operation = {"op": "combine_adapters", "adapters": adapters, "combination": combination, **fields}
    return engine.apply({
        "version": 1, "base_model": str(model), "operations": [operation], "output": str(output), "verify": {"outputs": check},
    })  # fmt: skip


def products(base, adapter, class_name=LLAMA):
    """What peft adds to each weight, in float64, by the name of the module."""
    import torch

    model = load_adapted(base, adapter, class_name, torch.float64)
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
        for name, layer in lora_layers(model, "default").items()
    }


def lora_layers(model, adapter):
    from peft.tuners.lora import LoraLayer

    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and adapter in layer.scaling
    }


def check_sum(base, sources, combined, class_name=LLAMA, roundings=0):
    """The products of ``combined`` are the weighted sum, up to so many roundings to float32 of its factors."""
    found = products(base, combined, class_name)
    parts = [(products(base, path, class_name), weight) for path, weight in sources]
    assert found.keys() == {name for part, _ in parts for name in part}
    for name, value in found.items():
        wanted = sum(part[name] * weight for part, weight in parts if name in part)
        size = sum(part[name].norm() * abs(weight) for part, weight in parts if name in part)
        # a rounding of each factor moves a sum over ranks by at most its length times that; float64 does the rest
        assert (value - wanted).norm() <= (roundings * UNITS["float32"] * 8 + 1e-14) * size, name


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A base, an adapter with patterns, and one of other ranks, scaling and targets."""
    place = tmp_path_factory.mktemp("llama")
    base, first = make_adapter(
        place / "a", LLAMA, target_modules="all-linear", task_type="CAUSAL_LM", rank_pattern={"q_proj": 6},
        alpha_pattern={"k_proj": 3},
    )  # fmt: skip
    _, other = make_adapter(
        place / "b", LLAMA, base=base, seed=1, r=3, lora_alpha=5, use_rslora=True, scale=0.08,
        target_modules=["q_proj", "embed_tokens"],
    )  # fmt: skip
    return base, first, other


@pytest.fixture(scope="module")
def equal_ranks(tmp_path_factory):
    """A base and two adapters of one rank on one target, the second of half the scaling."""
    place = tmp_path_factory.mktemp("equal")
    base, first = make_adapter(place / "a", LLAMA, target_modules=["q_proj"])
    _, other = make_adapter(place / "b", LLAMA, base=base, seed=1, lora_alpha=4, target_modules=["q_proj"], scale=0.08)
    return base, first, other


def test_the_outputs_are_those_of_both_adapters_active_at_once(tmp_path, llama):
    import torch

    base, first, other = llama
    sources = [(first, 1.0), (other, -0.75)]
    (check,) = combine(base, sources, tmp_path / "out").checks
    check_sum(base, sources, tmp_path / "out/adapter", roundings=1)
    assert check.changed < 1e-6
    assert check.effect > 0.01
    together = load_adapted(base, first, LLAMA)
    together.load_adapter(str(other), "other")
    together.base_model.set_adapter(["default", "other"])
    for layer in lora_layers(together, "other").values():
        layer.scaling["other"] *= -0.75
    ids = torch.arange(40)[None]
    with torch.no_grad():
        wanted = together(ids).logits.double()
        found = load_adapted(base, tmp_path / "out/adapter", LLAMA)(ids).logits.double()
        with together.disable_adapter():
            plain = together(ids).logits.double()
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert (plain - wanted).norm() > 0.01 * wanted.norm()


def test_powers_of_two_round_nothing(tmp_path, equal_ranks):
    base, first, other = equal_ranks
    sources = [(first, 2.0), (other, -0.5)]
    report = combine(base, sources, tmp_path / "out")
    (check,) = report.checks
    assert all(product.exact for product in check.products)
    assert report.verdict.startswith("verified (exact)")
    assert check.bitwise
    check_sum(base, sources, tmp_path / "out/adapter")


def test_one_adapter_can_be_taken_away(tmp_path, equal_ranks):
    base, first, _ = equal_ranks
    combine(base, [(first, -1.0)], tmp_path / "out", check=False)
    check_sum(base, [(first, -1.0)], tmp_path / "out/adapter")


OTHER_CLASSES = {
    "experts": ("MixtralForCausalLM", {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
                {"target_modules": ["v_proj"], "target_parameters": ["down_proj"]}),
    "Conv1D": ("GPT2LMHeadModel", {"target_modules": ["c_attn"]}, {"target_modules": ["c_attn", "wte"]}),
}  # fmt: skip


@pytest.mark.parametrize("combination", ["cat", pytest.param("svd", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("class_name", "one", "two"), OTHER_CLASSES.values(), ids=OTHER_CLASSES)
def test_experts_transposed_weights_and_tables(tmp_path, class_name, one, two, combination):
    base, first = make_adapter(tmp_path / "a", class_name, **one)
    _, other = make_adapter(tmp_path / "b", class_name, base=base, seed=1, r=2, scale=0.08, **two)
    sources = [(first, 1.0), (other, 0.5)]
    fields = {"svd_rank": 6} if combination == "svd" else {}
    (check,) = combine(base, sources, tmp_path / "out", combination, **fields).checks
    assert max(product.off_sum for product in check.products) < 1e-6
    if class_name == "GPT2LMHeadModel":  # peft gives no product of a parameter
        check_sum(base, sources, tmp_path / "out/adapter", class_name, roundings=2)


#: peft's own combinations that draw nothing.
STEADY = {
    "cat": {}, "svd": {"svd_rank": 5}, "linear": {}, "ties": {"density": 0.6}, "ties_svd": {"density": 0.6},
    "magnitude_prune": {"density": 0.5}, "magnitude_prune_svd": {"density": 0.5}, "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0, "majority_sign_method": "frequency"},
}  # fmt: skip


@pytest.fixture(scope="module")
def by_peft(equal_ranks):
    """peft's model with both adapters, which it can combine itself."""
    base, first, other = equal_ranks
    import torch

    model = load_adapted(base, first, LLAMA, torch.float64)
    model.load_adapter(str(other), "other")
    return model


@pytest.mark.parametrize(
    "kind", [one if one in ("cat", "ties_svd", "ties") else pytest.param(one, marks=pytest.mark.slow) for one in STEADY]
)
def test_the_products_are_those_that_peft_makes_itself(tmp_path, equal_ranks, by_peft, kind):
    base, first, other = equal_ranks
    fields = STEADY[kind]
    combine(base, [(first, 0.7), (other, 0.4)], tmp_path / "out", kind, check=False, **fields)
    by_peft.add_weighted_adapter(["default", "other"], [0.7, 0.4], kind, combination_type=kind, **fields)
    found = products(base, tmp_path / "out/adapter")
    for layer, value in zip(lora_layers(by_peft, kind).values(), found.values(), strict=True):
        wanted = layer.get_delta_weight(kind)
        assert (value - wanted).norm() <= 1e-6 * wanted.norm()


def test_linear_of_an_adapter_with_itself_is_twice_what_the_weights_say(tmp_path, equal_ranks):
    """As docs/lora.md says of peft's arithmetic."""
    base, first, _ = equal_ranks
    again = shutil.copytree(first, tmp_path / "again")
    (check,) = combine(base, [(first, 0.5), (again, 0.5)], tmp_path / "out", "linear").checks
    assert all(product.off_sum == pytest.approx(1, rel=1e-6) for product in check.products)
    check_sum(base, [(first, 2.0)], tmp_path / "out/adapter", roundings=4)


def test_what_is_drawn_is_seeded(tmp_path, quantized, equal_ranks):
    _, *adapters = equal_ranks
    base, sources, written = quantized, [Source(adapter, 1.0) for adapter in adapters], []
    for name in ("one", "two"):
        given = [(adapter, 1.0) for adapter in adapters]
        (check,) = combine(base, given, tmp_path / name, "dare_ties_svd", density=0.5, base="accept").checks
        assert check.failures == ()
        written.append((tmp_path / name / "adapter/adapter_model.safetensors").read_bytes())
    assert written[0] == written[1]
    other_seed = Combination("dare_ties_svd", 0.5, seed=(1, 0))
    assert compare_with_sources(base, sources, tmp_path / "one/adapter", other_seed).failures


def test_the_widest_dtype_holds_the_values(tmp_path, equal_ranks):
    import torch
    from safetensors.torch import load_file

    base, first, other = equal_ranks
    half = edit_adapter(other, tmp_path / "half", lambda held: {n: v.bfloat16() for n, v in held.items()})
    for pair, dtype in (((first, half), torch.float32), ((half, half), torch.bfloat16)):
        sources = [(pair[0], 1.0), (shutil.copytree(pair[1], tmp_path / f"{dtype}"), 0.3)]
        (check,) = combine(base, sources, tmp_path / f"out {dtype}").checks
        held = load_file(tmp_path / f"out {dtype}/adapter/adapter_model.safetensors")
        assert {value.dtype for value in held.values()} == {dtype}
        assert 0 < max(product.off_sum for product in check.products) < 2 * torch.finfo(dtype).eps


def test_the_nearest_of_a_rank_loses_no_more_than_it_must(tmp_path, llama):
    base, first, other = llama
    report = combine(base, [(first, 1.0), (other, 0.5)], tmp_path / "out", "svd", svd_rank=3)
    (check,) = report.checks
    lost = report.figures["operations.0.combine_adapters"]["lost_energy"]
    for product in check.products:
        assert product.lost == pytest.approx(product.least, rel=1e-5, abs=1e-13)
        assert lost[f"{product.name}.weight"] == pytest.approx(product.least, rel=1e-9, abs=1e-20)
    assert max(lost.values()) > 0.01
    config = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config.get("rank_pattern")) == (3, 3, None)


def test_a_weight_of_zero_adds_nothing(tmp_path, equal_ranks):
    base, first, other = equal_ranks
    combine(base, [(first, 1.0), (other, 0.0)], tmp_path / "out", check=False)
    check_sum(base, [(first, 1.0)], tmp_path / "out/adapter")


def nudged(value):
    """The values with the first of them one unit in the last place larger."""
    import torch

    value = value.clone()
    value.view(-1)[0] = torch.nextafter(value.view(-1)[0], torch.tensor(torch.inf, dtype=value.dtype))
    return value


def without(held, part):
    return {name: value for name, value in held.items() if part not in name}


def times(held, columns, factor):
    """The tensors with some columns of every B multiplied."""
    import torch

    scale = torch.ones(8)
    scale[columns] = factor
    return {name: value * scale if "lora_B" in name else value for name, value in held.items()}


FAULTS = {
    "the weight was dropped": ({}, lambda held: times(held, slice(4), 2)),
    "the alpha of the other adapter": ({}, lambda held: times(held, slice(4, 8), 2)),
    "the second adapter forgotten": ({}, lambda held: times(held, slice(4, 8), 0)),
    "the scaling of all": ({"lora_alpha": 16}, None),
    "no scaling": ({"lora_alpha": 0}, None),
    "a sign": ({}, lambda held: {n: -v if "0.self_attn.q_proj.lora_B" in n else v for n, v in held.items()}),
    "a last bit": ({}, lambda held: {n: nudged(v) if "0.self_attn.q_proj.lora_A" in n else v for n, v in held.items()}),
    "a module forgotten": ({"target_modules": ["model.layers.1.self_attn.q_proj"]},
                           lambda held: without(held, "layers.0.")),
}  # fmt: skip


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, equal_ranks):
    """The base as it is on a machine that cannot run it: products are compared, outputs are not."""
    folder = shutil.copytree(equal_ranks[0], tmp_path_factory.mktemp("quantized") / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory, quantized, equal_ranks):
    _, first, other = equal_ranks
    place = tmp_path_factory.mktemp("written")
    (check,) = combine(quantized, [(first, 0.5), (other, 1.0)], place / "out", base="accept").checks
    assert "the base is quantized" in check.not_compared
    assert all(product.exact for product in check.products)
    return quantized, [Source(first, 0.5), Source(other, 1.0)], place / "out/adapter"


@pytest.mark.parametrize(("fields", "change"), FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_caught(tmp_path, written, fields, change):
    base, sources, adapter = written
    wrong = edit_adapter(adapter, tmp_path / "wrong", change, **fields)
    failures = compare_with_sources(base, sources, wrong, Combination("cat")).failures
    assert failures[0].startswith("products: 'model.layers.")


def test_a_source_that_is_another_one_is_caught(tmp_path, written):
    base, sources, adapter = written
    assert compare_with_sources(base, sources, adapter, Combination("cat")).failures == ()
    swapped = [Source(sources[0].folder, 1.0), Source(sources[1].folder, 0.5)]
    assert compare_with_sources(base, swapped, adapter, Combination("cat")).failures
    less = edit_adapter(
        sources[0].folder, tmp_path / "less", lambda held: without(held, "layers.0."),
        target_modules=["model.layers.1.self_attn.q_proj"],
    )  # fmt: skip
    (failure, *_) = compare_with_sources(base, [Source(less, 0.5)], adapter, Combination("cat")).failures
    assert "layers.1" in failure
    assert "by no source" in str(compare_with_sources(base, [Source(less, 0.5)], adapter, Combination("cat")).failures)


@pytest.mark.parametrize("kind", ["svd", "linear", pytest.param("ties_svd", marks=pytest.mark.slow)])
def test_faults_of_the_other_combinations_are_caught(tmp_path, quantized, equal_ranks, kind):
    _, first, other = equal_ranks
    density = {"density": 0.5} if kind == "ties_svd" else {}
    combine(quantized, [(first, 1.0), (other, 1.0)], tmp_path / "out", kind, base="accept", **density)
    sources = [Source(first, 1.0), Source(other, 1.0)]
    combination = Combination(kind, density.get("density"))

    def larger(held):
        return {name: value * (1 + 2.0**-20) if "lora_B" in name else value for name, value in held.items()}

    wrong = edit_adapter(tmp_path / "out/adapter", tmp_path / "wrong", larger)
    assert compare_with_sources(quantized, sources, wrong, combination).failures
