"""Adapters of other kinds than LoRA: the files that peft itself saves, and outputs that are what the table promises."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.recipes import recipe
from support.sweeps import load_script

from graftkit.adapter_verification import UNSEEN_OF_OTHERS, verify_adapter
from graftkit.checkpoint import reading
from graftkit.engine import apply, plan
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.recipe.add_adapter import REFUSED, STARTS

SWEEP = load_script("sweep_adapters")

#: One of each way: sampled, from the weights, shaped by them, whole modules, rows, nothing but hooks, rounded, learnt prompts.
HANDFUL = (
    "IA3",
    "VERA",
    "PSOFT",
    "ADAMSS",
    "LN_TUNING",
    "TRAINABLE_TOKENS",
    "SHADOW",
    "OSF",
    "PREFIX_TUNING",
    "P_TUNING",
)


@pytest.fixture
def base(sources):
    return sources


def kind(name, **fields):
    return {"op": "add_adapter", "peft_type": name, **fields}


def test_the_table_names_every_kind_of_the_installed_peft():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert {name.value for name in PEFT_TYPE_TO_CONFIG_MAPPING} == {*STARTS, *REFUSED}
    page = (Path(__file__).parents[2] / "docs/sweep_adapters.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| (\w+) \| (bitwise|rounded|intentional) \|", page, re.MULTILINE)) == STARTS


@pytest.mark.cross_section
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in HANDFUL), *((name, "bfloat16") for name in ("OSF", "PSOFT", "SHADOW"))],
)
def test_a_kind_is_what_peft_saves_and_what_the_table_promises(base, name, dtype, tmp_path):
    found = SWEEP.measure(name, "llama", base("llama", dtype), tmp_path)
    assert not found.refused
    assert SWEEP.holds(name, found), found


def test_a_tensor_is_one_of_peft_s_or_as_near_as_they_are_to_one_another():
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert SWEEP._among(two, [one, two])
    assert SWEEP._among(torch.tensor([1.0, 2.25]), [one, two])
    assert not SWEEP._among(torch.tensor([1.0, 3.25]), [one, two])
    assert not SWEEP._among(torch.tensor([1.0, 2.25]), [one, one])
    assert not SWEEP._among(one.double(), [one, two])


def test_another_tensor_than_peft_s_is_found(base, tmp_path):
    source, spec = base("llama"), SWEEP.operation("ADAMSS", "llama")
    apply(recipe(source, tmp_path / "out", spec))
    file = tmp_path / "out/adapter/adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.any())
    tensors[name] = tensors[name] + tensors[name].abs().max()
    save_file(tensors, file, {"format": "pt"})
    assert (
        SWEEP._unlike_peft("ADAMSS", spec, source, file.parent, tmp_path / "peft")
        == f"other tensors than peft's: {name}"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dtype"), SWEEP.SETTINGS)
@pytest.mark.parametrize("name", STARTS)
def test_every_kind_is_what_peft_saves_and_what_the_table_promises(base, name, family, dtype, tmp_path):
    found = SWEEP.measure(name, family, base(family, dtype), tmp_path)
    assert family != "llama" or not found.refused
    assert SWEEP.holds(name, found), found


def test_a_wrong_promise_is_found(base, tmp_path, monkeypatch):
    monkeypatch.setitem(STARTS, "FOURIERFT", "bitwise")
    with pytest.raises(VerificationFailed, match="promised bitwise"):
        apply(recipe(base("llama"), tmp_path / "out", kind("FOURIERFT", target_modules=["q_proj"])))


def test_an_adapter_that_would_never_learn_is_refused(base, tmp_path):
    with pytest.raises(VerificationFailed, match="no parameter of the adapter gets one at step 0"):
        apply(recipe(base("gpt2"), tmp_path / "out", kind("OSF", target_modules=["c_attn"])))
    assert not (tmp_path / "out").exists()


def test_only_the_weights_that_peft_computes_from_are_read(base, tmp_path, monkeypatch):
    source = base("llama")
    read = []
    real = reading.read_range

    def watched(path, *rest):
        if path.is_relative_to(source):
            read.append(rest[1])
        return real(path, *rest)

    monkeypatch.setattr(reading, "read_range", watched)
    off = {"verify": {"outputs": False}}
    apply(recipe(source, tmp_path / "vera", kind("VERA", target_modules="all-linear", config={"r": 4}), **off))
    assert read == []
    apply(recipe(source, tmp_path / "delora", kind("DELORA", target_modules=["q_proj"], config={"r": 4}), **off))
    assert read == [32 * 32 * 4] * 2
    adapter = load_file(tmp_path / "delora/adapter/adapter_model.safetensors")
    weight = load_file(source / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    key = "base_model.model.model.layers.1.self_attn.q_proj.delora_w_norm"
    assert adapter[key].equal(torch.linalg.norm(weight, dim=0))


def test_the_seed_of_the_recipe_decides(base, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        operation = kind("LOHA", target_modules=["q_proj"])
        apply(recipe(base("llama"), tmp_path / name, operation, seed=seed, verify={"outputs": False}))
    one, again, other = (
        load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "again", "other")
    )
    assert all(one[key].equal(again[key]) for key in one)
    assert not all(one[key].equal(other[key]) for key in one)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": {"feedforward_module": ["down_proj"]}}, "'feedforward_module' is not a field of IA3; did you mean"),
        ({"target_modules": ["q_prj"]}, "'q_prj' matches no module; near names: q_proj"),
        ({"target_modules": ["*.none"]}, "matches no module"),
        ({"modules_to_save": ["lm_hed"]}, "modules_to_save: 'lm_hed' matches no module; near names: lm_head"),
        ({"config": {"exclude_modules": ["q_prj"]}}, "config.exclude_modules: 'q_prj' matches no module"),
        ({"target_modules": ["q_proj"], "config": {"feedforward_modules": ["up_proj"]}}, "peft refuses: ValueError"),
    ],
)
def test_fields_and_targets_that_do_not_fit_are_named(base, fields, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        plan(recipe(base("llama"), tmp_path / "out", kind("IA3", **fields)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank_pattern": {"q_prj": 2}}, "rank_pattern: 'q_prj' matches no target; did you mean 'q_proj'"),
        ({"layers_to_transform": [1, 9]}, "no target lies in layer 9; targets lie in: 1"),
    ],
)
def test_patterns_and_layers_that_fit_no_target_are_named(base, config, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        plan(recipe(base("llama"), tmp_path / "out", kind("LOHA", target_modules=["q_proj"], config=config)))


def test_a_field_that_the_kind_lacks_is_refused_where_it_is_asked_for(base, tmp_path):
    with pytest.raises(RecipeError, match="target_modules: has no effect: PROMPT_TUNING has no such field"):
        prompt = kind("PROMPT_TUNING", allow_change=True, target_modules=["q_proj"], config={"num_virtual_tokens": 2})
        plan(recipe(base("llama"), tmp_path / "out", prompt))


def test_globs_and_all_linear_leave_the_vision_tower_out(base, tmp_path):
    for name, targets in (("glob", ["*.q_proj"]), ("all", "all-linear")):
        planned = plan(recipe(base("llava"), tmp_path / name, kind("LOHA", target_modules=targets)))
        assert not [key for key in planned.adapter.tensors if "vision_tower" in key]
        assert any("vision_tower is left out" in note for note in planned.outcomes[0].notes)
    named = plan(recipe(base("llava"), tmp_path / "named", kind("LOHA", target_modules=["vision_tower.*.q_proj"])))
    assert all("vision_tower" in key for key in named.adapter.tensors)


def test_new_tokens_and_a_new_head_are_trained_where_the_kind_can(base, tmp_path):
    tokens = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}
    report = apply(recipe(base("llama"), tmp_path / "rows", tokens, kind("TRAINABLE_TOKENS")))
    config = json.loads((tmp_path / "rows/adapter/adapter_config.json").read_text())
    assert config["token_indices"] == sorted(report.plan.new_tokens.values())
    assert len(load_file(tmp_path / "rows/adapter/adapter_model.safetensors")) == 2  # input and output side
    planned = plan(recipe(base("llama"), tmp_path / "loha", tokens, kind("LOHA", target_modules=["q_proj"])))
    assert any("new tokens are not trained: LOHA" in note for note in planned.outcomes[1].notes)
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["x", "y"], "init": "zeros"}
    report = apply(
        recipe(
            base("llama"), tmp_path / "head", head, kind("OFT", target_modules=["q_proj"], config={"oft_block_size": 8})
        )
    )
    saved = load_file(tmp_path / "head/adapter/adapter_model.safetensors")
    assert "base_model.model.score.weight" in saved
    assert report.checks[-1].gap.bitwise


def test_one_side_of_a_tied_pair_is_untied_and_rows_of_both_are_not(base, tmp_path):
    planned = plan(recipe(base("llama_tied"), tmp_path / "a", kind("LOHA", target_modules=["lm_head", "q_proj"])))
    assert planned.result.config["tie_word_embeddings"] is False
    report = apply(
        recipe(base("llama_tied"), tmp_path / "b", kind("TRAINABLE_TOKENS", config={"token_indices": [5, 6]}))
    )
    assert not report.plan.writes_base
    assert report.checks[0].gap.bitwise


def test_verify_finds_faults_of_other_kinds_too(base, tmp_path):
    source = base("llama")
    apply(recipe(source, tmp_path / "places", kind("SHIRA", target_modules=["q_proj"], config={"r": 2})))
    assert verify_adapter(str(tmp_path / "places/adapter")).failures == ()
    apply(recipe(source, tmp_path / "out", kind("VERA", target_modules=["q_proj"], config={"r": 4})))
    assert verify_adapter(str(tmp_path / "out/adapter")).failures == ()
    config = tmp_path / "out/adapter/adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "d_initial": 0.5}))
    assert "d_initial is 0.5, was 0.1" in verify_adapter(str(tmp_path / "out/adapter"), outputs=False).failures[0]
    config.write_text(json.dumps({key: value for key, value in values.items() if key != "peft_type"}))
    with pytest.raises(InputRejected, match="names its peft_type"):
        verify_adapter(str(tmp_path / "out/adapter"))


def test_a_lost_tensor_of_another_kind_is_missed(base, tmp_path):
    from safetensors.torch import save_file

    apply(
        recipe(
            base("llama"), tmp_path / "out", kind("IA3", target_modules=["k_proj"], config={"feedforward_modules": []})
        )
    )
    weights = tmp_path / "out/adapter/adapter_model.safetensors"
    tensors = load_file(weights)
    renamed = {key.replace("layers.1", "layers.7"): value for key, value in tensors.items()}
    save_file(renamed, weights, {"format": "pt"})
    (tmp_path / "out/graft_report.json").unlink()
    verified = verify_adapter(str(tmp_path / "out/adapter"))
    found = verified.failures
    assert verified.notes == (UNSEEN_OF_OTHERS,)
    assert any("missing tensors" in failure for failure in found)
    assert any("unexpected tensors" in failure for failure in found)


def test_lens_and_signal_take_kinds_in_the_layers_and_refuse_others_with_the_reason(base, tmp_path):
    looks = {"verify": {"lens": True, "signal": True}}
    loha = kind("LOHA", target_modules=["q_proj"])
    report = apply(recipe(base("llama"), tmp_path / "loha", loha, **looks))
    assert [check.name for check in report.checks] == ["adapter", "lens", "signal"]
    with pytest.raises(RecipeError, match="cannot take this adapter"):
        prompt = kind("PROMPT_TUNING", allow_change=True, config={"num_virtual_tokens": 2})
        apply(recipe(base("llama"), tmp_path / "prompt", prompt, **looks))
