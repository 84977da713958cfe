"""A wider residual stream does what it did where norms are root mean squares: new channels hold zeros, gains and epsilons make up for them."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support import recipes
from support.tiny import build as tiny

import graftkit
from graftkit import engine
from graftkit.architecture.axis_maps import AxisMaps
from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.modules_before import modules_before
from graftkit.architecture.skeleton import build_skeleton
from graftkit.architecture.widths.growth import growths
from graftkit.compare import verify
from graftkit.errors import InputRejected, VerificationFailed
from graftkit.operations.widths import tensors as making
from graftkit.operations.widths import widening
from graftkit.operations.widths.rescaling import Rescaling, find_rescaling
from graftkit.verification.subject import Subject
from graftkit.verification.weights.rescaled import RescaledCheck, RescaledReport

pytestmark = pytest.mark.numerical

#: Far from zero, so that a result with another shows it.
EPSILON = 1e-3

WIDER, FOURFOLD = {"op": "widen", "sizes": {"hidden_size": 96}}, {"op": "widen", "sizes": {"hidden_size": 256}}

OLD = slice(0, 64)

FAMILIES = {
    "llama": ("LlamaForCausalLM", {}, True),
    "qwen2": ("Qwen2ForCausalLM", {}, False),
    "qwen3": ("Qwen3ForCausalLM", {"attention_bias": True}, True),
    "mistral": ("MistralForCausalLM", {}, False),
}

#: Where a norm of queries has the epsilon too.
FED = [f"self_attn.{side}_proj.{leaf}" for side in "qk" for leaf in ("weight", "bias")]


@pytest.fixture(scope="module")
def source_of(tmp_path_factory):
    """Builds a family once for each dtype, of width 64."""
    made = {}

    def build(family, dtype):
        if (family, dtype) not in made:
            name, more, tie = FAMILIES[family]
            made[family, dtype] = place = tmp_path_factory.mktemp(family) / "source"
            tiny(name, place, dtype=dtype, tie=tie, config_overrides={"rms_norm_eps": EPSILON, **more})
        return made[family, dtype]

    return build


def stored(directory):
    return load_file(directory / "model.safetensors")


def rescaled(report):
    return next(check for check in report.checks if isinstance(check, RescaledReport))


def lens(report):
    return next(check for check in report.checks if check.name == "lens")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "bfloat16"), ("qwen3", "float32"), *(pytest.param(f, "bfloat16", marks=pytest.mark.slow) for f in ("qwen2", "qwen3", "mistral"))],
)  # fmt: skip
def test_half_as_many_channels_more_leave_the_function_as_it_was_but_for_rounding(family, dtype, source_of, tmp_path):
    source, output = source_of(family, dtype), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, WIDER, verify={"first_step": True}))
    assert report.plan.promise.strength.word == "rounded"
    assert max(lens(report).outputs.values()) <= lens(report).floor.threshold
    unit = torch.finfo(getattr(torch, dtype)).eps / 2
    assert 0 < rescaled(report).error <= unit
    assert rescaled(report).noise.ratio <= 2
    (step,) = (check for check in report.checks if check.name == "first_step")
    assert step.failures == ()
    config, before = recipes.config_of(output), recipes.config_of(source)
    assert config["hidden_size"] == 96
    assert config["rms_norm_eps"] == pytest.approx(EPSILON * 64 / 96, rel=1e-15)
    assert config["head_dim"] == before.get("head_dim", 16) == 16
    old, new = stored(source), stored(output)
    gain, root = "model.layers.1.input_layernorm.weight", math.sqrt(64 / 96)
    assert torch.equal(new[gain][OLD], (old[gain].double() * root).to(old[gain].dtype))
    block = "model.layers.0."
    silent = {f"{block}mlp.down_proj.weight": (slice(64, 96),), f"{block}self_attn.o_proj.weight": (slice(64, 96),),
              "model.embed_tokens.weight": (slice(None), slice(64, 96))}  # fmt: skip
    assert not any(new[name][place].any() for name, place in silent.items())
    assert new[f"{block}mlp.up_proj.weight"][:, 64:].any(), "what reads a new channel has values"
    for name, value in old.items():
        kept = new[name][tuple(slice(0, size) for size in value.shape)]
        fed = family == "qwen3" and name.endswith(tuple(FED))
        if fed:
            assert torch.equal(kept, (value.double() * root).to(value.dtype))
        elif "layernorm" not in name and name != "model.norm.weight":
            assert torch.equal(kept, value), name


def test_four_times_as_many_are_exact(source_of, tmp_path):
    """Gains and matrices are multiplied by a half."""
    source, output = source_of("qwen3", "bfloat16"), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, FOURFOLD))
    assert report.plan.promise.strength.word == "exact"
    assert (rescaled(report).rounded, rescaled(report).noise) == (0, None)
    old, new = (recipes.load(place)[0] for place in (source, output))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before, after = (model(ids, output_hidden_states=True) for model in (old, new))
    assert torch.allclose(before.logits.float(), after.logits.float(), rtol=0.02, atol=0.02)
    assert not any(state[..., 64:].any() for state in after.hidden_states)


@pytest.fixture
def instead(monkeypatch):
    """Lets the experiment say something else of what is rescaled than it found."""

    def let(change):
        search = widening.search

        def changed(trial):
            found = search(trial)
            return dataclasses.replace(found, rescaling=change(found.rescaling))

        monkeypatch.setattr(widening, "search", changed)

    return let


def without(*leaves):
    return lambda found: Rescaling({k: v for k, v in found.kinds.items() if not k.endswith(leaves)}, found.epsilons)


FAULTS = {
    "the epsilon as it was": lambda found: Rescaling(found.kinds, ()),
    "one gain as it was": without("post_attention_layernorm.weight"),
    "queries as they were": without("q_proj.weight", "q_proj.bias"),
    "a bias as it was": without("k_proj.bias"),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=pytest.mark.slow) if f in ("one gain as it was", "queries as they were") else f for f in FAULTS]
)  # fmt: skip
def test_what_is_not_rescaled_is_caught_in_float64(fault, source_of, tmp_path, instead):
    instead(FAULTS[fault])
    with pytest.raises(VerificationFailed, match=r"lens: .* differs in float64 .*nothing was written"):
        graftkit.apply(recipes.recipe(source_of("qwen3", "float32"), tmp_path / "out", FOURFOLD))
    assert not (tmp_path / "out").exists()


def test_what_is_not_rescaled_is_caught_where_values_are_rounded(source_of, tmp_path, instead):
    instead(FAULTS["the epsilon as it was"])
    with pytest.raises(
        VerificationFailed, match="rescaled: outputs are .* off the source's in float64, .*, above 2: the rounded"
    ):
        graftkit.apply(recipes.recipe(source_of("qwen3", "float32"), tmp_path / "out", WIDER))


def test_a_wrong_rule_that_hides_in_the_rounding_is_caught_in_float64(source_of, tmp_path, instead):
    """In bfloat16 another epsilon is less than what the arithmetic does by itself."""
    small = tmp_path / "small"
    config = {**recipes.config_of(source_of("llama", "bfloat16")), "rms_norm_eps": 1e-6}
    recipes.save(source_of("llama", "bfloat16"), small, stored(source_of("llama", "bfloat16")))
    (small / "config.json").write_text(json.dumps(config))
    instead(FAULTS["the epsilon as it was"])
    with pytest.raises(VerificationFailed, match=r"^lens: .* differs in float64 .*nothing was written"):
        graftkit.apply(recipes.recipe(small, tmp_path / "out", WIDER))


def test_values_that_are_not_the_nearest_are_caught(source_of, tmp_path, monkeypatch):
    """One unit in the last place of each gain, as a truncation leaves it: the lens takes them unrounded, their own check does not."""
    elementwise = making.elementwise
    monkeypatch.setattr(
        making, "elementwise", lambda tensors, dtype, f: elementwise(tensors, dtype, lambda v: f(v) * (1 - 2**-8))
    )
    with pytest.raises(
        VerificationFailed, match=r"rescaled: tensor 'model\S+' does not hold its old values times 0.81649"
    ):
        graftkit.apply(recipes.recipe(source_of("llama", "bfloat16"), tmp_path / "out", WIDER))


def test_rounding_that_does_more_than_the_arithmetic_is_caught(source_of, tmp_path, monkeypatch):
    from graftkit.verification.weights import rescaled as checking

    noise = checking.recast_noise
    monkeypatch.setattr(
        checking, "recast_noise", lambda *args, **kw: dataclasses.replace(noise(*args, **kw), total=1.0)
    )
    with pytest.raises(VerificationFailed, match="rescaled: outputs are 1 off the source's in float64, .* above 2"):
        graftkit.apply(recipes.recipe(source_of("llama", "bfloat16"), tmp_path / "out", WIDER))


def test_what_later_operations_change_is_compared_as_it_was_planned(source_of, tmp_path):
    source = source_of("qwen3", "float32")
    steps = (
        {"op": "widen", "sizes": {"hidden_size": 96, "intermediate_size": 128, "num_key_value_heads": 4}},
        {"op": "insert_blocks", "after": [0]},
        {"op": "extend_vocab", "special_tokens": ["<|a|>"]},
        {"op": "add_lora", "r": 2, "target_modules": "all-linear", "layers_to_transform": "new"},
    )
    report = graftkit.apply(recipes.recipe(source, tmp_path / "out", *steps))
    assert report.plan.promise.strength.word == "rounded"
    assert rescaled(report).failures == ()
    widths = report.plan.correspondence.widths["model.layers.0.self_attn.k_proj.weight"]
    assert widths.scale == math.sqrt(64 / 96)
    assert dict(widths.axes)[0].result == 64


def test_verify_pairs_channels_by_the_report(source_of, tmp_path):
    source, output = source_of("llama", "bfloat16"), tmp_path / "out"
    graftkit.apply(recipes.recipe(source, output, WIDER))
    assert verify(source, output).failures == ()
    state = stored(output)
    state["model.layers.0.mlp.down_proj.weight"][64:] = 0.1
    recipes.save(output, tmp_path / "changed", state)
    (tmp_path / "changed/graft_report.json").write_bytes((output / "graft_report.json").read_bytes())
    assert verify(source, tmp_path / "changed").failures


@pytest.mark.slow
def test_parameters_that_are_read_from_files_are_taken_unrounded_too(source_of, tmp_path):
    from graftkit.verification.lens.lens import compare_lens

    source, output = source_of("qwen3", "bfloat16"), tmp_path / "out"
    report = graftkit.apply(recipes.recipe(source, output, WIDER, verify={"outputs": False}))
    found = compare_lens(Subject(source, output, correspondence=report.plan.correspondence, paged=True))
    assert found.paged
    assert found.failures == ()


def test_a_gain_that_is_stored_beyond_one_is_multiplied_with_it():
    """Gemma's: its class is refused for its embeddings' scale, so that this is tried on the skeleton alone."""
    config = {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "num_hidden_layers": 1, "vocab_size": 99,
              "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip
    before, after = (build_skeleton({**config, "hidden_size": size}) for size in (32, 128))
    found = find_rescaling(config, before, growths(before, after, 32, 128))
    assert set(found.kinds.values()) == {1.0}
    assert found.epsilons == (("rms_norm_eps",),)
    assert not found.is_exact(0.5)
    maps = AxisMaps(((0, IndexMap(2, 3, ((0, 0, 2),))),), 0.5, 1.0)
    assert AxisMaps.from_json(json.loads(json.dumps(dataclasses.asdict(maps)))) == maps
    old, new = torch.tensor([0.0, 1.0]), torch.tensor([-0.5, 0.0, 7.0])
    assert torch.equal(*maps.pair(old, new))
    assert maps.placed(old, torch.full((3,), 7.0)).tolist() == [-0.5, 0.0, 7.0]
    assert maps.summed(torch.tensor([2.0, 4.0, 9.0])).tolist() == [1.0, 2.0]
    assert maps.then(AxisMaps(((0, IndexMap(3, 3, ((0, 0, 3),))),), 0.5, 1.0)).scale == 0.25


def test_the_matrix_before_a_norm_is_seen_by_its_memory():
    """Apertus computes queries, keys and values before it norms the first two."""
    config = {"model_type": "apertus", "architectures": ["ApertusForCausalLM"], "num_hidden_layers": 1, "vocab_size": 99,
              "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    attention = "model.layers.0.self_attn"
    found = modules_before(
        build_skeleton(config), [f"{attention}.q_norm", f"{attention}.k_norm", "model.layers.0.attention_layernorm"]
    )
    assert {norm: name for norm, name in found.items() if norm.startswith(attention)} == {
        f"{attention}.q_norm": f"{attention}.q_proj", f"{attention}.k_norm": f"{attention}.k_proj"
    }  # fmt: skip


def test_a_plan_says_what_is_rescaled(source_of):
    plan = engine.plan(recipes.recipe(source_of("llama", "bfloat16"), "out/never", WIDER))
    assert any("multiplied by 0.816497 are model.layers.*.input_layernorm.weight" in note for note in plan.notes)
    assert any("rms_norm_eps of config.json by 0.666667" in note for note in plan.notes)
    assert any(isinstance(check, RescaledCheck) for check in plan.outcomes[0].checks)


def test_parameters_of_one_name_with_other_roles_are_refused(tmp_path):
    """CTRL's feed-forward layer is a list, whose first matrix reads the stream and whose third writes it."""
    tiny("CTRLLMHeadModel", tmp_path / "source")
    step = {"op": "widen", "sizes": {"n_embd": 128}}
    with pytest.raises(InputRejected, match=r"transformer.h.\*.ffn.\*.weight grow along other axes under one name"):
        engine.plan(recipes.recipe(tmp_path / "source", "out/never", step))


def test_a_norm_that_does_not_run_by_itself_is_named_as_the_reason(tmp_path):
    """I-BERT's wants the scale of what it is given, too."""
    tiny("IBertForMaskedLM", tmp_path / "source")
    with pytest.raises(InputRejected, match="IntLayerNorm, LayerNorm is more than a root mean square"):
        engine.plan(recipes.recipe(tmp_path / "source", "out/never", {"op": "widen", "sizes": {"hidden_size": 256}}))
