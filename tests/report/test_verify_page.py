"""`verify A B --report FILE`: the comparison of two checkpoints as a page, and the same figures in JSON."""

import json
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from support.families import build


def verify(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "graftkit", "verify", *map(str, arguments)], check=False, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A checkpoint, and a copy in which one weight is moved."""
    place = tmp_path_factory.mktemp("pair")
    source = build("llama", place / "source")
    moved = place / "moved"
    shutil.copytree(source, moved)
    tensors = load_file(moved / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] += 0.01
    save_file(tensors, moved / "model.safetensors", {"format": "pt"})
    return source, moved


def test_the_page_says_that_b_differs_and_where(pair, tmp_path):
    page = tmp_path / "page.html"
    found = verify(*pair, "--lens", "--signal", "--report", page, "--json")
    assert found.returncode == 4, found.stderr
    text, report = page.read_text(), json.loads(found.stdout)
    assert ">Differs<" in text
    assert "model.layers.1.mlp.up_proj.weight" in text
    for section in ("checks", "tensors", "not-checked", "provenance"):
        assert f'<section id="{section}">' in text
    for title in ("True float64", "Noise", "Signal", "Tensors that differ"):
        assert title in text
    assert "Content-Security-Policy" in text
    assert report["lens"]["first"]["module"].startswith("model.layers.1.mlp")
    assert report["signal"]["figures"]
    assert all(sentence.replace("'", "&#x27;").split("'")[0][:30] in text for sentence in report["failures"])


def test_the_page_of_an_equal_copy_says_so(pair, tmp_path):
    page = tmp_path / "page.html"
    found = verify(pair[0], pair[0], "--report", page)
    assert found.returncode == 0, found.stderr
    assert ">Verified<" in page.read_text()
    assert "--lens compares module by module in float64" in page.read_text()
    assert "Tensors that differ" not in page.read_text()


def test_a_device_without_lens_or_signal_is_refused(pair):
    found = verify(*pair, "--device", "cpu")
    assert found.returncode == 2
    assert "add --lens or --signal" in found.stderr
