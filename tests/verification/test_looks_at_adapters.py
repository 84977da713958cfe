"""The first step and the lens, over a base with a prepared adapter: clean ones pass, planted faults are named."""

import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.families import ROWS, build

import graftkit
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.verification.first_step import compare_first_step
from graftkit.verification.lens.lens import compare_lens
from graftkit.verification.subject import Subject

TOKENS = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
HEAD = {"op": "replace_head", "task": "sequence_classification", "labels": ["x", "y"], "init": "zeros"}


def run(place, source, *operations, **looks):
    recipe = {"version": 1, "base_model": str(source), "output": str(place), "operations": list(operations)}
    report = graftkit.apply({**recipe, "verify": {"outputs": False, **looks}})
    return {check.name: check for check in report.checks}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapter")
    source = build("llama", place / "source", tokens=ROWS, dtype="bfloat16")
    found = run(place / "out", source, {"op": "add_lora", "r": 4}, first_step=True, lens=True)
    return source, place / "out/adapter", found


def kinds(moves, step):
    return {
        next((k for k in ("lora_A", "lora_B", "tokens", "modules_to_save") if k in n), n)
        for n, s in moves.items()
        if s == step
    }


def test_the_first_step_of_a_zero_b_adapter_lies_in_b_alone(made):
    found = made[2]["first_step"]
    assert found.failures == ()
    assert kinds(found.moves, 0) == {"lora_B"}
    assert kinds(found.moves, 1) == {"lora_A"}
    assert found.ceiling >= 1e-4
    assert all(
        figure.error < 0.02
        for figure in found.steps
        if figure.learning_rate <= 1e-4 and figure.measured > 100 * figure.floor
    )
    rows = {check: figure for check, _, figure in found.rows()}
    assert rows["new parameters"].endswith("lora_B at step 0, lora_A at step 1")


def test_factors_that_are_both_zero_wait_for_each_other_for_ever(made, tmp_path):
    source, adapter, _ = made
    shutil.copytree(adapter, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "0.self_attn.v_proj.lora_A" in name)
    tensors[name].zero_()
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    found = compare_first_step(Subject(source, source, adapter=tmp_path / "adapter"))
    assert [name for name, step in found.moves.items() if step is None] == [
        f"model.layers.0.self_attn.v_proj.lora_{side}.default.weight" for side in "AB"
    ]
    assert "v_proj.lora_A" in found.failures[0]


def test_new_rows_and_a_zero_head_move_in_their_order(tmp_path):
    source = build("llama", tmp_path / "source", tokens=ROWS)
    pad = {**TOKENS, "roles": {"pad_token": "<|pad|>"}}
    found = run(tmp_path / "out", source, pad, HEAD, {"op": "add_lora", "r": 2}, first_step=True)["first_step"]
    assert found.failures == ()
    assert kinds(found.moves, 0) == {"modules_to_save"}
    assert kinds(found.moves, 1) == {"lora_B", "tokens"}
    assert kinds(found.moves, 2) == {"lora_A"}
    assert found.steps == ()


def test_rows_that_tied_tables_share_are_trained_by_those_that_run(tmp_path):
    source = build("t5", tmp_path / "source", tokens=ROWS)
    found = run(tmp_path / "out", source, TOKENS, {"op": "add_lora", "r": 2}, first_step=True)["first_step"]
    assert found.failures == ()
    assert found.not_run == ()
    assert kinds(found.moves, 0) == {"lora_B", "tokens"}


def test_modules_that_the_batch_does_not_run_are_listed(tmp_path):
    source = build("llava", tmp_path / "source", tokens=ROWS)
    found = run(tmp_path / "out", source, {"op": "add_lora", "r": 2}, first_step=True)["first_step"]
    assert found.failures == ()
    assert found.not_run
    assert all("multi_modal_projector" in name for name in found.not_run)


def test_experts_that_a_router_chooses_among_are_reached(tmp_path):
    source = build("mixtral", tmp_path / "source", tokens=ROWS)
    found = run(tmp_path / "out", source, {"op": "add_lora", "r": 2}, first_step=True)["first_step"]
    assert found.failures == ()
    assert any("experts" in name for name in found.moves)


def test_the_lens_does_not_flag_a_clean_adapter(made):
    found = made[2]["lens"]
    assert found.failures == ()
    assert set(found.outputs.values()) == {0.0}


def test_the_lens_sees_one_unit_in_the_last_place_of_a_base_under_an_adapter(made, tmp_path):
    source, adapter, _ = made
    shutil.copytree(source, tmp_path / "flipped")
    tensor = read_header(tmp_path / "flipped/model.safetensors").tensors["model.layers.1.mlp.down_proj.weight"]
    values = np.memmap(tensor.path, np.uint16, "r+", tensor.offset, tensor.shape)
    values[3, 5] ^= 1
    values.flush()
    found = compare_lens(Subject(source, tmp_path / "flipped", adapter=adapter))
    assert found.failures
    assert "model.layers.1.mlp.down_proj" in found.failures[0]


def test_the_lens_sees_an_adapted_expert_that_changes_the_outputs(tmp_path):
    source = build("mixtral", tmp_path / "source", tokens=ROWS)
    found = run(tmp_path / "out", source, {"op": "add_lora", "r": 2}, lens=True)["lens"]
    assert set(found.outputs.values()) == {0.0}
    weights = tmp_path / "out/adapter/adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "layers.1.mlp.experts" in name and "lora_B" in name)
    tensors[name] += 1e-3
    save_file(tensors, weights, {"format": "pt"})
    found = compare_lens(Subject(source, source, adapter=tmp_path / "out/adapter"))
    assert found.failures
