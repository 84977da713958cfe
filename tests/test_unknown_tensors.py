"""Tensors that no class of the config loads, such as a block for multi-token prediction: refused, or carried byte for byte."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import assert_one_line, here
from support.recipes import recipe

TOKENS = {"op": "extend_vocab", "tokens": ["zz"]}
MTP = {"mtp.layers.0.proj.weight": torch.randn(6, 7), "mtp.norm.weight": torch.ones(5)}


def with_tensors(source, target, tensors):
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, metadata={"format": "pt"})
    return target


@pytest.fixture
def source(demo, tmp_path):
    return with_tensors(demo, tmp_path / "source", MTP)


def written(path, source, *operations, **fields):
    path.write_text(json.dumps(recipe(source, path.parent / "out", *operations, **fields)))
    return path


def test_they_are_refused_by_name_unless_the_recipe_carries_them(source, tmp_path):
    path = written(tmp_path / "r.json", source, TOKENS)
    for command in ("plan", "apply"):
        assert_one_line(here(command, path), 3, "2 tensors of no class of this config: mtp.layers.0.proj.weight")
    assert "unknown_tensors: carry" in here("inspect", source).stdout
    assert not (tmp_path / "out").exists()
    done = here("apply", path, "unknown_tensors=carry")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 tensors that no class loads" in done.stdout
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(found[name].equal(value) for name, value in MTP.items())
    report = json.loads((tmp_path / "out/graft_report.json").read_text())
    assert any("no output shows them" in note for note in report["notes"])
    assert here("verify", source, tmp_path / "out").returncode == 0


def test_a_lost_one_is_found(source, tmp_path):
    done = here("apply", written(tmp_path / "r.json", source, TOKENS), "unknown_tensors=carry")
    assert done.returncode == 0
    path = tmp_path / "out/model.safetensors"
    (tmp_path / "out/graft_report.json").unlink()
    save_file({n: v for n, v in load_file(path).items() if n != "mtp.norm.weight"}, path, metadata={"format": "pt"})
    done = here("verify", source, tmp_path / "out")
    assert done.returncode == 4
    assert "mtp.norm.weight" in done.stdout


def test_one_with_a_row_for_each_token_is_refused_where_the_vocabulary_changes(demo, tmp_path):
    rows = json.loads((demo / "config.json").read_text())["vocab_size"]
    source = with_tensors(demo, tmp_path / "source", {"mtp.head.weight": torch.zeros(rows, 3)})
    path = written(tmp_path / "r.json", source, TOKENS, unknown_tensors="carry")
    assert_one_line(here("plan", path), 3, f"mtp.head.weight has {rows} rows or columns")
    lora = {"op": "add_lora", "r": 2, "target_modules": ["q_proj"]}
    assert here("plan", written(tmp_path / "lora.json", source, lora)).returncode == 0
