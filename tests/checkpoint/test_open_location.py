"""Where a base model is: a folder, the hub's cache, or the hub, played by a server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from open_support import make_sharded, make_single
from support.hub import COMMIT, ROOT, Repository, environment, hub

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.location import locate
from graftkit.errors import InputRejected, RecipeError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, offline; the constants are what huggingface_hub made of the environment at its import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def fill(cache: Path, make=make_sharded, repository="models--org--tiny") -> Path:
    """Put a checkpoint into the cache as huggingface_hub does: links to blobs, and a ref that names the commit."""
    storage = cache / repository
    snapshot = make(storage / "snapshots" / COMMIT)
    (snapshot / "1_Pooling").mkdir()
    (snapshot / "1_Pooling" / "config.json").write_text("{}")
    (snapshot / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    (storage / "blobs").mkdir()
    files = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
    for number, path in enumerate(files):
        blob = storage / "blobs" / f"{number:040x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("make", [make_single, make_sharded])
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_snapshot_is_opened_without_a_request(cache, make, revision):
    snapshot = fill(cache, make)
    checkpoint = Checkpoint.open("org/tiny", revision=revision)
    assert (checkpoint.name, checkpoint.directory, checkpoint.revision) == ("org/tiny", snapshot, COMMIT)
    assert {tensor.path.parent.name for tensor in checkpoint.tensors.values()} == {"blobs"}
    assert checkpoint.carried == ("modules.json", "1_Pooling/config.json")


def test_a_local_folder_wins_over_the_cache(cache):
    fill(cache)
    make_single(cache.parent / "org" / "tiny")
    assert Checkpoint.open("org/tiny").revision is None


def list_files(cache, snapshot, *more):
    """Write the listing of the commit that huggingface_hub keeps, with ``more`` files than the snapshot has."""
    names = [*(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()), *more]
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0" * 40} for name in names}}
    (cache / "models--org--tiny" / "trees").mkdir()
    (cache / "models--org--tiny" / "trees" / f"{COMMIT}.json").write_text(json.dumps(listing))


def test_a_listing_that_names_other_formats_does_not_matter(cache):
    snapshot = fill(cache)
    list_files(cache, snapshot, "pytorch_model.bin", "onnx/model.onnx", "figures/a.png", ".gitattributes")
    assert locate("org/tiny").directory == snapshot


def test_a_file_that_was_never_downloaded_is_not_lost_silently(cache):
    list_files(cache, fill(cache), "chat_template.jinja")
    expected = r"HF_HUB_OFFLINE is set; unset it to complete the download: .*are missing \(chat_template.jinja\)$"
    with pytest.raises(InputRejected, match=f"^org/tiny: {expected}"):
        locate("org/tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model-00002-of-00002.safetensors", "has no model-00002-of-00002.safetensors and HF_HUB_OFFLINE is set"),
        ("model.safetensors.index.json", "has no model.safetensors or model.safetensors.index.json and HF_HUB_OFFLINE"),
        ("config.json", "has no config.json and HF_HUB_OFFLINE is set"),
    ],
)
def test_an_incomplete_snapshot_offline(cache, name, message):
    (fill(cache) / name).unlink()
    with pytest.raises(InputRejected, match=f"^org/tiny: the cached commit {COMMIT} {message}"):
        locate("org/tiny")


def test_not_cached_offline(cache):
    fill(cache)
    expected = "is not a local folder and not cached; unset HF_HUB_OFFLINE to download it"
    with pytest.raises(InputRejected, match=f"^org/other: {expected}$"):
        locate("org/other")
    expected = "is not a local folder and at revision 'v2' not cached; unset HF_HUB_OFFLINE to download it"
    with pytest.raises(InputRejected, match=f"^org/tiny: {expected}$"):
        locate("org/tiny", "v2")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["", "./models/tinny", "models/a/tinny", "a b", "x\0y", "--", "~nobody-at-all/x"])
def test_neither_a_folder_nor_a_hub_id(name):
    with pytest.raises(InputRejected, match="is neither a folder nor a hub id"):
        locate(name)


@pytest.mark.parametrize("name", ["./models/tinny", "models/tinny"])
def test_names_the_nearest_folder(cache, name):
    make_single(cache.parent / "models" / "tiny")
    with pytest.raises(InputRejected, match=r"did you mean the folder 'models/tiny'\?$"):
        locate(name)


def test_a_file_is_not_a_checkpoint(cache):
    make_single(cache.parent / "tiny")
    with pytest.raises(InputRejected, match=r"^tiny/model.safetensors: is a file; name the folder that it is in$"):
        locate("tiny/model.safetensors")


@pytest.mark.parametrize("revision", ["../../x", "/etc/hostname", ""])
def test_a_revision_that_is_a_path(cache, revision):
    # huggingface_hub opens refs/REVISION in its cache, wherever that leads.
    fill(cache)
    with pytest.raises(RecipeError, match=r"^revision: .* is not the name of a branch, a tag or a commit$"):
        locate("org/tiny", revision)


ONLINE = """
import json, sys
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import GraftkitError
for name, revision in json.loads(sys.argv[1]):
    try:
        found = Checkpoint.open(name, revision=revision)
        print(json.dumps(["opened", found.revision, sorted(p.name for p in found.directory.iterdir())]))
    except GraftkitError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def run_online(tmp_path, endpoint, *asked):
    done = subprocess.run(
        [sys.executable, "-c", ONLINE, json.dumps(asked)],
        capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120,
        env=environment(endpoint, tmp_path / "home") | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_downloads_what_is_needed_once_and_explains_refusals(tmp_path):
    folder = make_sharded(tmp_path / "served")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model_head.pkl").write_bytes(b"head")
    wanted = sorted(path.name for path in folder.iterdir())
    for name in ("pytorch_model.bin", "model.gguf", "consolidated.safetensors", "optimizer.pt"):
        (folder / name).write_bytes(b"other")
    served = Repository(folder)
    with hub(tiny=served, gated=Repository(folder, "gated")) as endpoint:
        opened, gated, absent, revision = run_online(
            tmp_path, endpoint, ("org/tiny", None), ("org/gated", None), ("org/absent", None), ("org/tiny", "v2")
        )
        asked = len(served.asked)
        again = run_online(tmp_path, endpoint, ("org/tiny", "main"))
        assert len(served.asked) == asked, "a cached commit needs no request"
    assert opened == again[0] == ["opened", COMMIT, wanted]
    assert gated[0] == revision[0] == "InputRejected"
    assert absent[0] == "NotThere"
    assert gated[1].startswith("org/gated: is gated; accept its terms on the hub")
    assert absent[1].startswith("org/absent: is neither a folder nor a hub repository, or it is private")
    assert revision[1] == "org/tiny: has no revision 'v2' on the hub"
    (unreachable,) = run_online(tmp_path, "http://127.0.0.1:9", ("org/other", None))
    assert unreachable[0] == "StorageFault"
    assert unreachable[1].startswith("org/other: is not wholly cached, and the hub cannot be reached: ")
