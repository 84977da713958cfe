"""What an adapter holds is what peft would write: names, shapes, dtypes and config, resolved without a weight."""

import json

import pytest
from safetensors import safe_open
from support.families import FAMILIES, build

from graftkit.architecture.peft.injection import skeleton_of
from graftkit.architecture.peft.targets import resolve, resolve_names
from graftkit.errors import RecipeError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    made = {}

    def of(family):
        if family not in made:
            directory = build(family, tmp_path_factory.mktemp(family))
            made[family] = json.loads((directory / "config.json").read_text())
        return made[family]

    return of


def resolved(config, **fields):
    values = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **fields}
    return resolve(lambda: skeleton_of(config, "float32"), values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("mixtral", "llava")])
def test_all_linear_is_what_peft_writes_for_the_loaded_model(family, dtype, tmp_path):
    import transformers
    from peft import LoraConfig, get_peft_model

    (tmp_path / "base").mkdir()
    directory = build(family, tmp_path / "base", dtype=dtype)
    config = json.loads((directory / "config.json").read_text())
    found, notes = resolve(lambda: skeleton_of(config, dtype), {"r": 4, "target_modules": "all-linear"})
    model = getattr(transformers, config["architectures"][0]).from_pretrained(directory)
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).save_pretrained(tmp_path / "peft")
    with safe_open(tmp_path / "peft" / "adapter_model.safetensors", "pt") as file:
        written = {
            key: (tuple(file.get_slice(key).get_shape()), file.get_slice(key).get_dtype())
            for key in file.keys()  # noqa: SIM118 - it is no mapping
        }
    tags = {"float32": "F32"}
    assert {key: (entry.shape, tags[entry.dtype]) for key, entry in found.entries.items()} == written
    saved = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    same = {**saved, "base_model_name_or_path": None, "target_modules": sorted(saved["target_modules"])}
    assert found.config == same
    assert notes == ()


def test_a_vision_tower_is_a_target_only_when_it_is_named(config):
    found, notes = resolved(config("llava"))
    assert not any("vision_tower" in name for name in found.modules)
    assert any("multi_modal_projector" in name for name in found.modules)
    assert "model.vision_tower is left out" in notes[0]
    names, _ = resolved(config("llava"), target_modules=["q_proj"])
    assert names.modules == tuple(f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(2))
    tower, _ = resolved(config("llava"), target_modules=["vision_tower.*q_proj"])
    assert tower.modules == tuple(f"model.vision_tower.encoder.layers.{i}.self_attn.q_proj" for i in range(2))


def test_fused_experts_are_targets_and_the_router_only_when_it_is_named(config):
    found, notes = resolved(config("mixtral"))
    experts = {target.weight: target.experts for target in found.targets if target.experts > 1}
    assert set(experts) == {
        f"model.layers.{i}.mlp.experts.{p}" for i in range(2) for p in ("down_proj", "gate_up_proj")
    }
    assert set(experts.values()) == {4}
    assert not any("gate.weight" in target.weight for target in found.targets)
    assert "routers are left out" in notes[0]
    named, _ = resolved(config("mixtral"), target_modules=["w1", "w2", "w3", "gate"])
    assert "model.layers.0.mlp.gate.weight" in {target.weight for target in named.targets}
    key = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"
    assert found.entries[key].shape == (4 * 8, 32)  # gate and up are two targets in one: rank 8


def test_globs_match_full_names_and_layers_filter_them(config):
    found, _ = resolved(config("llama"), target_modules=["*.self_attn.[qv]_proj"], layers_to_transform=[1])
    assert found.modules == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    every, _ = resolved(config("llama"), layers_to_transform=[1])
    assert {name.split(".")[2] for name in every.modules} == {"1"}
    assert len(every.modules) == 7


def test_patterns_change_ranks_and_scalings(config):
    fields = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 64}, "use_rslora": True}
    found, _ = resolved(config("llama"), **fields)
    by_name = {target.module.rpartition(".")[2]: target for target in found.targets}
    assert (by_name["q_proj"].rank, by_name["q_proj"].scaling) == (2, 8 / 2**0.5)
    assert (by_name["v_proj"].rank, by_name["v_proj"].scaling) == (4, 64 / 4**0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["q_proj", "q_prj"]}, "'q_prj' matches no module; near names: q_proj"),
        ({"target_modules": ["*.z_proj"]}, "'*.z_proj' matches no module; near names"),
        ({"target_modules": ["input_layernorm"]}, "peft refuses: ValueError: Target module LlamaRMSNorm"),
        ({"layers_to_transform": [7]}, "there is no layer 7; layers are: 0, 1"),
        (
            {"layers_to_transform": [1, 9], "target_modules": ["q_proj"]},
            "there is no layer 9; layers are: 0, 1",
        ),
        ({"rank_pattern": {"q_porj": 2}}, "'q_porj' matches no target; did you mean 'q_proj'?"),
        ({"alpha_pattern": {"(": 2}}, "'(' is no regular expression"),
        ({"target_parameters": ["experts.w"]}, "'experts.w' matches no parameter"),
        ({"bais": "all"}, "unexpected keyword argument 'bais'"),
        ({"bias": "some"}, "peft refuses"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(config, fields, message):
    with pytest.raises(RecipeError) as error:
        resolved(config("llama"), **fields)
    assert message in str(error.value)


def test_half_of_a_fused_pair_and_dropout_on_experts_are_refused(config):
    with pytest.raises(RecipeError, match="without also targeting w3"):
        resolved(config("mixtral"), target_modules=["w1"])
    with pytest.raises(RecipeError, match="does not work with lora_dropout"):
        resolved(config("mixtral"), lora_dropout=0.1)
    with pytest.raises(RecipeError, match="name it in target_parameters"):
        resolved(config("mixtral"), target_modules=["q_proj", "down_proj"])


def test_where_peft_refuses_a_module_so_is_it_refused_here():
    config = {
        "model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": 32, "state_size": 8,
        "num_hidden_layers": 2, "vocab_size": 331,
    }  # fmt: skip
    with pytest.raises(RecipeError, match="'out_proj' is incompatible with Mamba-based models"):
        resolved(config)
    with pytest.raises(RecipeError, match=r"^peft refuses"):
        resolve_names(lambda: skeleton_of(config, "float32"), "all-linear")
    found, _ = resolved(config, target_modules=["in_proj"])
    assert len(found.modules) == 2
