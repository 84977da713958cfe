"""Every kind of damage to a written checkpoint is caught, and named."""

import json

import numpy as np
import pytest
from support.families import ROWS, TOKENS, build

from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.write import write_checkpoint
from graftkit.engine import execute, plan
from graftkit.errors import InputRejected, VerificationFailed
from graftkit.verification.structural import check_structure

LEAF = "model.layers.1.self_attn.o_proj.weight"


def planned_for(source, output, **fields):
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>"], **fields}
    return plan({"version": 1, "base_model": str(source), "operations": [operation], "output": str(output)})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("source"), tokens=ROWS)


@pytest.fixture
def written(source, tmp_path):
    planned = planned_for(source, tmp_path / "never")
    staged = tmp_path / "staged"
    staged.mkdir()
    write_checkpoint(planned.source, planned.result, staged)
    return planned, staged


def edit(staged, name, change):
    tensor = read_header(staged / "model.safetensors").tensors[name]
    raw = bytearray((staged / "model.safetensors").read_bytes())
    values = np.frombuffer(raw, np.float32, tensor.nbytes // 4, tensor.offset).reshape(tensor.shape)
    change(values)
    (staged / "model.safetensors").write_bytes(raw)


def test_a_clean_write_passes_and_accounts_for_every_byte(written):
    planned, staged = written
    ledger = check_structure(planned.result, staged)
    assert {entry.name for entry in ledger} == set(planned.source.tensors)
    assert sum(entry.source_bytes for entry in ledger) == sum(t.nbytes for t in planned.source.tensors.values())
    assert sum(entry.produced_bytes for entry in ledger) == 2 * 32 * 4


def flip_an_ulp(values):
    values.view(np.uint32)[3, 5] ^= 1


def swap_rows(values):
    values[[10, 11]] = values[[11, 10]]


def transpose(values):
    values[:] = values.T.copy()


def negative_zero(values):
    values[-1] = -values[-1]


@pytest.mark.parametrize(
    ("name", "fault", "side"),
    [
        (LEAF, flip_an_ulp, "the source"),
        (LEAF, transpose, "the source"),
        ("model.embed_tokens.weight", swap_rows, "the source"),
        ("lm_head.weight", negative_zero, "what was computed"),
    ],
)
def test_changed_values_are_named(written, name, fault, side):
    planned, staged = written
    edit(staged, name, fault)
    with pytest.raises(VerificationFailed, match=rf"{name}.*differs from {side}"):
        check_structure(planned.result, staged)


def test_a_lost_tensor_is_named(written):
    from safetensors.numpy import load_file, save_file

    planned, staged = written
    tensors = load_file(staged / "model.safetensors")
    del tensors[LEAF]
    save_file(tensors, staged / "model.safetensors")
    with pytest.raises(VerificationFailed, match=LEAF):
        check_structure(planned.result, staged)


def test_a_tensor_of_another_shape_is_named(written):
    from safetensors.numpy import load_file, save_file

    planned, staged = written
    tensors = load_file(staged / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
    save_file(tensors, staged / "model.safetensors")
    with pytest.raises(VerificationFailed, match=r"lm_head.weight.*was written as F32 \[331, 32\]"):
        check_structure(planned.result, staged)


@pytest.mark.parametrize("key", ["vocab_size", "rms_norm_eps", "num_hidden_layers", "tie_word_embeddings"])
def test_a_changed_config_is_named(written, key):
    planned, staged = written
    config = json.loads((staged / "config.json").read_text())
    config[key] = 7
    (staged / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationFailed, match=r"config.json"):
        check_structure(planned.result, staged)


def test_a_stale_file_of_weights_beside_the_new_one_is_caught(written, source):
    planned, staged = written
    (staged / "model.safetensors").rename(staged / "model-00001-of-00001.safetensors")
    (staged / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    with pytest.raises(VerificationFailed):
        check_structure(planned.result, staged)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_source_with_values_that_are_not_finite_is_refused_by_name(tmp_path, value):
    source = build("llama", tmp_path / "source")
    edit(source, "model.layers.0.self_attn.k_proj.weight", lambda values: values.__setitem__((2, 7), value))
    planned = planned_for(source, tmp_path / "out")
    staged = tmp_path / "staged"
    staged.mkdir()
    write_checkpoint(planned.source, planned.result, staged)
    with pytest.raises(InputRejected, match=r"k_proj.weight.*not finite at element 71"):
        check_structure(planned.result, staged)
    assert check_structure(planned.result, staged, allow_nonfinite=True)


def test_tokens_that_take_padding_rows_leave_the_shape_alone(tmp_path):
    source = build("llama", tmp_path / "source", tokens=TOKENS)
    planned = planned_for(source, tmp_path / "out")
    assert {change.new_shape for change in planned.tensors} == {(ROWS, 32)}
    assert {change.rows for change in planned.tensors} == {1}


def test_a_file_that_was_not_carried_along_is_named(tmp_path):
    source = build("llama", tmp_path / "source")
    (source / "LICENSE").write_text("free")
    planned = planned_for(source, tmp_path / "never")
    staged = tmp_path / "staged"
    staged.mkdir()
    write_checkpoint(planned.source, planned.result, staged)
    (staged / "LICENSE").unlink()
    with pytest.raises(VerificationFailed, match="file LICENSE was not carried along"):
        check_structure(planned.result, staged)


def test_a_produced_value_that_is_not_finite_is_never_written(source, tmp_path):
    planned = planned_for(source, tmp_path / "out", init={"scheme": "normal", "std": 1e39})
    with pytest.raises(VerificationFailed, match=r"not finite at element \d+; it was computed by the recipe"):
        execute(planned)
    assert not (tmp_path / "out").exists()
