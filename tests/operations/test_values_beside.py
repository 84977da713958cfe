"""A head that was fitted to a model's outputs, and modules behind it, come along unread, and the report says what becomes of them."""

import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.families import build
from support.recipes import applied

from graftkit.compare import verify


class Trap:
    """What fails the test when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the head was read')",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As sentence-transformers and SetFit save one: a pooling, a dense layer, and a classifier of scikit-learn."""
    source = build("bert_base", tmp_path_factory.mktemp("folder") / "source")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": "x"} for i, path in enumerate(("", "1_Pooling", "2_Dense"))
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "2_Dense"):
        (source / name).mkdir()
        (source / name / "config.json").write_text("{}")
    save_file({"linear.weight": np.ones((4, 32), np.float32)}, source / "2_Dense/model.safetensors")
    (source / "model_head.pkl").write_bytes(pickle.dumps(Trap()))
    (source / "config_setfit.json").write_text('{"labels": ["a", "b"]}')
    (source / "pytorch_model.bin").write_bytes(b"stale")
    return source


def files(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_head_comes_along_byte_for_byte_and_is_named(folder, tmp_path):
    output, report = applied(folder, tmp_path, {"op": "extend_vocab", "tokens": ["zqx"]})
    old, new = files(folder), files(output)
    assert old.keys() - new.keys() == {"pytorch_model.bin"}
    beside = (
        "model_head.pkl",
        "2_Dense/model.safetensors",
        "2_Dense/config.json",
        "config_setfit.json",
        "modules.json",
    )
    assert [name for name in beside if old[name] != new[name]] == []
    assert "model_head.pkl: trained values beside the model's weights, copied unread, byte for byte" in report["notes"]
    assert not any("fitted to" in note for note in report["notes"])


def test_where_the_outputs_change_what_was_fitted_to_the_old_ones_is_named(folder, tmp_path):
    output, report = applied(folder, tmp_path, {"op": "reinit", "layers": "last 1"})
    assert (output / "model_head.pkl").read_bytes() == (folder / "model_head.pkl").read_bytes()
    (note,) = (note for note in report["notes"] if "fitted to" in note)
    assert note == (
        "2_Dense/model.safetensors, model_head.pkl: were fitted to the source's outputs, which change here; fit them again"
    )


def test_a_base_that_is_the_source_s_again_with_its_adapter_keeps_what_was_fitted(folder, tmp_path):
    _, report = applied(folder, tmp_path, {"op": "add_lora", "r": 2, "init_lora_weights": "pissa"})
    assert any("copied unread" in note for note in report["notes"])
    assert not any("fitted to" in note for note in report["notes"])


def test_a_recipe_that_leaves_the_base_where_it_is_says_nothing_of_what_lies_beside_it(folder, tmp_path):
    _, report = applied(folder, tmp_path, {"op": "add_lora", "r": 2})
    assert not any("model_head" in note for note in report["notes"])


@pytest.mark.parametrize("fault", ["lost", "changed"])
def test_a_head_that_is_lost_or_changed_fails_verify(folder, tmp_path, fault):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert not verify(str(folder), str(copy), outputs=False).failures
    if fault == "lost":
        (copy / "model_head.pkl").unlink()
    else:
        (copy / "model_head.pkl").write_bytes(b"another")
    words = {"lost": "is missing", "changed": "is not the source's"}[fault]
    assert verify(str(folder), str(copy), outputs=False).failures == (f"config: model_head.pkl {words}",)
