"""Adapters as peft 0.12 to 0.21 have written them, of the same values: all of them merge to the same bits."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from graftkit import engine

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import write_adapter_formats as formats


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats") / "base"
    formats.make_base(folder)
    return folder


def merged(base, adapter, output):
    """The written weights as bytes."""
    operation = {"op": "merge_adapter", "adapter": str(adapter)}
    engine.apply({
        "version": 1, "base_model": str(base), "operations": [operation], "output": str(output), "verify": {"outputs": False},
    })  # fmt: skip
    return (output / "model.safetensors").read_bytes()


def test_each_version_is_there_and_small():
    folders = {path.name for path in formats.DATA.iterdir()}
    assert folders == formats.VERSIONS.keys()
    for version in folders:
        found = [path for path in (formats.DATA / version).rglob("*") if path.is_file()]
        assert {path.name for path in found} == {"adapter_config.json", "adapter_model.safetensors"}
        assert sum(path.stat().st_size for path in found) < 20_000
    configs = {(formats.DATA / version / "plain/adapter_config.json").read_text() for version in folders}
    assert len(configs) == len(folders)


@pytest.mark.parametrize("name", formats.ADAPTERS)
def test_all_versions_merge_to_the_same_bits(tmp_path, base, name):
    folders = {version: formats.DATA / version / name for version in formats.VERSIONS}
    assert [version for version, folder in folders.items() if not folder.exists()] == formats.not_written(name)
    formats.write_adapter(name, base, tmp_path / "installed")
    wanted = merged(base, tmp_path / "installed", tmp_path / "merged")
    assert wanted != (base / "model.safetensors").read_bytes()
    for version, folder in folders.items():
        if folder.exists():
            assert merged(base, folder, tmp_path / version) == wanted, version


def test_the_same_values_are_in_every_file(base, tmp_path):
    """So that a difference would be one of the formats."""
    for name in formats.ADAPTERS:
        formats.write_adapter(name, base, tmp_path / name)
        installed = sorted(load_file(tmp_path / name / "adapter_model.safetensors").items())
        for version in formats.VERSIONS.keys() - set(formats.not_written(name)):
            stored = load_file(formats.DATA / version / name / "adapter_model.safetensors")
            assert sum(value.numel() for value in stored.values()) == sum(value.numel() for _, value in installed)
            for (key, value), (other, wanted) in zip(sorted(stored.items()), installed, strict=True):
                assert value.equal(wanted), (version, key, other)
