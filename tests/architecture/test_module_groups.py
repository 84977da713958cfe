"""What adapters can target, by name and shape, and how many parameters an adapter trains."""

import json
import re
import shutil
import warnings

import pytest
from support.command import assert_one_line, here
from support.recipes import recipe

from graftkit.architecture.dimensions import dimensions_of
from graftkit.architecture.module_groups import module_groups
from graftkit.architecture.skeleton import build_skeleton


def skeleton_of(source):
    return build_skeleton(json.loads((source / "config.json").read_text()))


def labels(source):
    return {(group.label, group.size) for group in module_groups(skeleton_of(source))}


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("llama", {("q_proj (2 layers)", "32 -> 32"), ("k_proj (2 layers)", "32 -> 16"), ("lm_head", "32 -> 331")}),
        ("gpt2", {("c_attn (2 layers)", "32 -> 96"), ("attn.c_proj (2 layers)", "32 -> 32"), ("wte", "331 -> 32")}),
        ("bert", {("attention.output.dense (2 layers)", "32 -> 32"), ("output.dense (2 layers)", "64 -> 32")}),
        ("t5", {("SelfAttention.q (4 places)", "32 -> 32"), ("EncDecAttention.q (2 places)", "32 -> 32")}),
        ("mixtral", {("gate.weight (2 layers)", "4 x 32"), ("gate_up_proj (2 layers)", "4 x 128 x 32")}),
        ("llava", {("patch_embedding", "3 -> 32"), ("gate_proj (2 layers)", "32 -> 64")}),
    ],
)
def test_modules_are_grouped_by_name_and_shape(sources, family, wanted):
    assert wanted <= labels(sources(family))


@pytest.mark.parametrize("family", ["gpt2", "bert", "llava"])
def test_a_linear_of_a_group_is_a_target_that_peft_takes(sources, family):
    """By the name that is shown, and as many of them as are shown."""
    from peft import LoraConfig, get_peft_model

    for group in module_groups(skeleton_of(sources(family))):
        if group.kind == "parameter" or group.name == "output.dense":  # which another group's name ends with
            continue
        model = skeleton_of(sources(family)).model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, LoraConfig(target_modules=[group.name]))
        twins = [other for other in module_groups(skeleton_of(sources(family))) if other.name == group.name]
        assert len(adapted.base_model.targeted_module_names) == sum(other.count for other in twins)


@pytest.mark.parametrize(
    ("family", "layers", "sizes"),
    [
        ("llama", {"model.layers": 2}, (32, 64, 4, 2, 8, 128)),
        ("gpt2", {"transformer.h": 2}, (32, None, 4, None, 8, 64)),
        ("t5", {"encoder.block": 2, "decoder.block": 2}, (32, 64, 4, None, 8, None)),
        ("llava", {"model.vision_tower.encoder.layers": 2, "model.language_model.layers": 2}, (32, 64, 4, 2, 8, 128)),
    ],
)
def test_dimensions(sources, family, layers, sizes):
    found = dimensions_of(skeleton_of(sources(family)))
    assert found.layers == layers
    assert sizes == (
        found.hidden_size, found.intermediate_size, found.heads, found.key_value_heads, found.head_dim, found.positions,
    )  # fmt: skip


def test_inspect_shows_size_template_and_targets(demo, tmp_path):
    text = here("inspect", demo).stdout
    assert (
        "size        3 layers (model.layers); width 160, 448 inside a block; 5 heads of 32; context 512 positions"
        in text
    )
    assert "template    none" in text
    assert re.search(r"^gate_proj \(3 layers\) +linear +160 -> 448 *$", text, re.MULTILINE)
    found = json.loads(here("inspect", demo, "--json").stdout)
    assert found["dimensions"]["layers"] == {"model.layers": 3}
    assert {"name": "q_proj", "kind": "linear", "shape": [160, 160], "count": 3, "layers": True} in found["modules"]
    assert (found["chat_templates"], found["model_max_length"]) == ({}, None)
    copy = shutil.copytree(demo, tmp_path / "copy")
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert "template    chat template (14 characters)" in here("inspect", copy).stdout


def planned(source, place, *flags, **operation):
    (place / "recipe.json").write_text(json.dumps(recipe(source, place / "out", operation)))
    return here("plan", place / "recipe.json", *flags)


@pytest.mark.parametrize(
    ("family", "operation"),
    [
        ("llama", {"op": "add_lora", "r": 4}),
        ("llama", {"op": "add_lora", "r": 2, "use_dora": True, "modules_to_save": ["embed_tokens"]}),
        ("mixtral", {"op": "add_lora", "r": 4}),
        ("llama", {"op": "add_adapter", "peft_type": "VERA"}),
        ("llama", {"op": "add_adapter", "peft_type": "IA3"}),
        ("llama", {"op": "add_adapter", "peft_type": "PROMPT_TUNING", "allow_change": True,
                   "config": {"num_virtual_tokens": 3}}),
    ],
    ids=["lora", "dora", "experts", "vera", "ia3", "prompt"],
)  # fmt: skip
def test_a_plan_counts_what_peft_trains(sources, tmp_path, family, operation):
    """As peft counts it, on the model that is loaded with the adapter that was written."""
    import transformers
    from peft import PeftModel

    source = sources(family)
    done = planned(source, tmp_path, "--json", **operation)
    found = json.loads(done.stdout)
    assert here("apply", tmp_path / "recipe.json", "verify.outputs=false", "-q").returncode == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(
            model, tmp_path / "out/adapter", is_trainable="PROMPT" not in str(operation)
        )
    prompts = found["trainable_parameters"] if "PROMPT" in str(operation) else 0
    assert prompts or found["trainable_parameters"] == adapted.get_nb_trainable_parameters()[0]
    assert found["trainable_parameters"] == sum(group["parameters"] for group in found["adapted_modules"])


def test_a_plan_lists_the_targets_of_an_adapter_and_none_without_one(demo, tmp_path):
    done = planned(demo, tmp_path, "--json", op="add_lora", r=4, target_modules=["*.1.*.q_proj", "v_proj"])
    shown = here("plan", tmp_path / "recipe.json")
    listed = {(group["name"], group["count"], group["layers"]) for group in json.loads(done.stdout)["adapted_modules"]}
    assert listed == {("q_proj", 1, True), ("v_proj", 3, True)}
    assert "trainable  5,120 parameters, 0.32 % of the base's 1,608,800\n" in shown.stdout
    assert re.search(r"^v_proj +3 layers +160 -> 160 +3,840 *$", shown.stdout, re.MULTILINE)
    done = planned(demo, tmp_path, "--json", op="extend_vocab", tokens=["zqx"])
    assert json.loads(done.stdout)["trainable_parameters"] is None
    assert "the adapter trains" not in here("plan", tmp_path / "recipe.json").stdout


@pytest.mark.parametrize(
    ("entry", "near"),
    [
        ("q_prj", "q_proj"),
        ("zzz", "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head"),
        ("*.z_proj", "proj"),
        ("model.layers.0.self_atn.q_proj", "model.layers.0.self_attn.q_proj"),
    ],
)
def test_near_names_are_modules_that_can_be_targets(demo, tmp_path, entry, near):
    for operation in ({"op": "add_lora"}, {"op": "add_adapter", "peft_type": "LOHA"}):
        done = planned(demo, tmp_path, **operation, target_modules=[entry])
        assert_one_line(done, 2, "matches no module; near names: ")
        shown = done.stderr.partition("near names: ")[2]
        assert near in shown
        assert not re.search(r"norm|rotary|act_fn|self_attn(, |$)|mlp(, |$)", shown)
    done = planned(demo, tmp_path, op="add_adapter", peft_type="LN_TUNING", target_modules=["input_layernrm"])
    assert_one_line(done, 2, "near names: input_layernorm")
