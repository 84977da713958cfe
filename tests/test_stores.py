"""A base and an output in a store of fsspec's: the copy here, the order of an upload, and what goes wrong with either."""

import json
from pathlib import Path

import fsspec
import pytest
from support.command import assert_one_line, here, real
from support.recipes import recipe

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.staging import Staging
from graftkit.checkpoint.stores import download, store, upload
from graftkit.errors import StorageFault

GROW = {"op": "extend_vocab", "tokens": ["zqx"]}
NOT_RUN = {"outputs": False}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Copies of these tests alone, and a store in memory that is empty."""
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return memory


def put(folder, url):
    """Put a folder into a store."""
    fs, root = fsspec.core.url_to_fs(url)
    for path in folder.rglob("*"):
        if path.is_file():
            place = f"{root}/{path.relative_to(folder)}"
            fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(path), place)


def written(tmp_path, base, output, *operations, **fields):
    path = tmp_path / f"recipe-{len(list(tmp_path.iterdir()))}.json"
    path.write_text(json.dumps(recipe(base, output, *(operations or (GROW,)), verify=NOT_RUN, **fields)))
    return path


def files_of(fs, root):
    return {place.removeprefix(f"{root}/"): fs.cat_file(place) for place in fs.find(root)}


def test_from_store_to_store_is_what_is_written_from_folder_to_folder(demo, tmp_path, cache):
    put(demo, "memory://models/demo")
    done = here("apply", written(tmp_path, "memory://models/demo", "memory://models/grown"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "written to memory://models/grown" in done.stdout
    found = files_of(cache, "/models/grown")
    assert here("apply", written(tmp_path, demo, tmp_path / "out"), "-q").returncode == 0
    local = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found.keys() == local.keys()
    own = ("graft_report.json", "graft_report.html", "graft_recipe.yaml", "README.md")
    assert all(found[name] == path.read_bytes() for name, path in local.items() if name not in own)
    report = json.loads(found["graft_report.json"])
    assert "output: memory://models/grown" in report["recipe"]
    assert b"memory://models/demo" in found["README.md"]
    assert Checkpoint.open("memory://models/grown").tensors.keys() == Checkpoint.open(tmp_path / "out").tensors.keys()
    assert not list((tmp_path / "cache/uploads").rglob("*.safetensors"))


def test_an_adapter_and_the_real_command_over_a_store_of_files(demo, tmp_path):
    place = tmp_path / "store"
    put(demo, f"local://{place}/demo")
    lora = {"op": "add_lora", "r": 2}
    path = written(tmp_path, f"file://{place}/demo", f"file://{place}/adapted", lora)
    done = real("apply", path, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    config = json.loads((place / "adapted/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"file://{place}/demo"
    assert_one_line(real("plan", path), 2, "exists; name another output, or replace it with --overwrite")


def test_only_what_the_store_has_anew_is_brought_again(demo, cache, monkeypatch):
    put(demo, "memory://models/demo")
    asked = []
    right = download._bring
    monkeypatch.setattr(download, "_bring", lambda *given: (asked.append(given[1]), right(*given)))
    folder = download.download_checkpoint("memory://models/demo")
    assert {path.name for path in demo.iterdir() if path.suffix in (".json", ".safetensors")} <= set(asked)
    asked.clear()
    download.download_checkpoint("memory://models/demo")
    assert asked == []
    cache.pipe_file("/models/demo/config.json", (demo / "config.json").read_bytes() + b"\n")
    cache.rm_file("/models/demo/generation_config.json")
    assert download.download_checkpoint("memory://models/demo") == folder
    assert asked == ["config.json"]
    assert not (folder / "generation_config.json").exists()
    assert (folder / "config.json").read_bytes().endswith(b"\n")


@pytest.mark.parametrize("kept", [False, True], ids=["new", "overwritten"])
def test_a_reader_never_sees_half(demo, tmp_path, cache, monkeypatch, kept):
    """Whatever file the upload stops at, the store has no config, or everything that it speaks of."""
    folder = tmp_path / "made"
    for name, raw in {"graft_report.json": b"{}", "a.json": b"{}", "x-1.safetensors": b"1" * 9, "x-2.safetensors": b"2" * 9,
                      "model.safetensors.index.json": b"{}", "config.json": b"{}", "adapter/adapter_config.json": b"{}",
                      "adapter/adapter_model.safetensors": b"3"}.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    whole = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    put, remove = type(cache).put_file, type(cache).rm_file
    for stop in range(len(whole) + 1):
        cache.store.clear()
        if kept:
            for name in ("config.json", "graft_report.json", "old.safetensors"):
                cache.pipe_file(f"/out/{name}", b"old")
        left = [stop]

        def put_file(self, *given, left=left, **fields):
            left[0] -= 1
            if left[0] < 0:
                raise OSError("the network is gone")
            return put(self, *given, **fields)

        def rm_file(self, *given, left=left):
            if left[0] < 0:
                raise OSError("the network is gone")
            return remove(self, *given)

        monkeypatch.setattr(type(cache), "put_file", put_file)
        monkeypatch.setattr(type(cache), "rm_file", rm_file)
        try:
            upload._upload(folder, store.open_store("memory://out"))
        except OSError:
            found = files_of(cache, "/out")
            assert "config.json" not in found
            if "adapter/adapter_config.json" in found:
                assert found["adapter/adapter_model.safetensors"] == b"3"
            assert not stop or "graft_report.json" in found
        else:
            assert stop == len(whole)
            assert files_of(cache, "/out").keys() == whole


def test_an_upload_that_fails_says_where_the_output_lies(demo, tmp_path, cache, monkeypatch):
    path = written(tmp_path, demo, "memory://models/grown")

    def refuse(*given, **fields):
        raise PermissionError("forbidden:\nno rights")

    monkeypatch.setattr(type(cache), "put_file", refuse)
    done = here("apply", path, "-q")
    assert_one_line(done, 5, "memory://models/grown: the upload failed: forbidden:; the output is not whole there")
    kept = Path(done.stderr.rpartition("it lies in ")[2].removesuffix(" until the next run\n"))
    assert Checkpoint.open(kept).tensors
    monkeypatch.undo()
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    assert cache.find("/models/grown") == []
    assert here("apply", path, "-q").returncode == 0
    assert cache.exists("/models/grown/config.json")
    assert not kept.exists()


def test_a_file_that_arrives_short_is_a_fault(demo, tmp_path, cache, monkeypatch):
    right = type(cache).put_file

    def short(self, lpath, rpath, **fields):
        right(self, lpath, rpath, **fields)
        self.pipe_file(rpath, self.cat_file(rpath)[:-1])

    monkeypatch.setattr(type(cache), "put_file", short)
    assert_one_line(here("apply", written(tmp_path, demo, "memory://out"), "-q"), 5, "arrived as ")
    monkeypatch.undo()
    put(demo, "memory://models/demo")
    monkeypatch.setattr(type(cache), "get_file", lambda self, r, l, **fields: Path(l).write_bytes(b"short"))  # noqa: E741
    with pytest.raises(StorageFault, match="came as 5 bytes of"):
        download.download_checkpoint("memory://models/demo")


def test_what_is_refused(demo, tmp_path, cache):
    put(demo, "memory://models/demo")
    cache.pipe_file("/papers/thesis.pdf", b"x")
    base = "memory://models/demo"
    for source, output, options, code, words in (
        ("memory://nothing", tmp_path / "out", [], 3, "memory://nothing: there is no folder with files"),
        (f"{base}/config.json", tmp_path / "out", [], 3, "is a file; name the folder that it is in"),
        ("nosuch://bucket/x", tmp_path / "out", [], 2, "base_model: 'nosuch://bucket/x': fsspec knows no such store"),
        (demo, "nosuch://bucket/x", [], 2, "output: 'nosuch://bucket/x': fsspec knows no such store"),
        ("s3://bucket/x", tmp_path / "out", [], 5, "s3://bucket/x: a library is missing that reaches such stores"),
        (demo, "gs://bucket/x", [], 5, "gs://bucket/x: a library is missing that reaches such stores"),
        (demo, base, [], 2, "exists; name another output, or replace it with --overwrite"),
        (demo, "memory://papers", ["--overwrite"], 2, "is not a checkpoint"),
        (demo, "memory://", [], 2, "names no folder of the store"),
        (base, f"{base}/grown", [], 2, "is, holds or lies in the source memory://models/demo"),
        (base, "memory://models", ["--overwrite"], 2, "is, holds or lies in the source"),
        (demo, "memory://out", ["--if-changed"], 2, "--if-changed: is for folders of this machine"),
    ):
        assert_one_line(here("apply", written(tmp_path, source, output), "-q", *options), code, words)
    path = written(tmp_path, base, tmp_path / "out", revision="main")
    assert_one_line(here("plan", path), 2, "is in a store, which has none; remove the revision")


def test_another_run_that_writes_the_same_output_holds_it(demo, tmp_path):
    with upload.uploaded("memory://out"):
        path = written(tmp_path, demo, "memory://out")
        assert_one_line(here("apply", path, "-q"), 6, "memory://out: another run is writing it")
        (store.copies("memory://out", "uploads") / "out").mkdir()
    with Staging(tmp_path / "out"):
        assert_one_line(here("apply", written(tmp_path, demo, tmp_path / "out"), "-q"), 6, "another run is writing it")
