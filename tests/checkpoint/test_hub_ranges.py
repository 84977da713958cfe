"""A checkpoint on the hub, without its weights: which bytes are asked for, over real HTTP, and how each failure ends."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.hub import ROOT, TOKEN, Repository, commands, environment, hub

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.checkpoint.safetensors_header import encode_header, read_header

WEIGHTS = "model.safetensors"


LORA = {"op": "add_lora", "r": 4}
NOT_RUN = {"verify": {"outputs": False}}


@dataclass
class Setting:
    """A hub with repositories, a cache for each, and a process that runs commands against it."""

    run: Any
    home: Path
    repositories: dict[str, Repository]

    def recipe(self, base, *operations, **more):
        """Write a recipe for ``org/BASE``, and return its path; its output, which there is not yet, lies beside it."""
        path = self.home / f"{base}-{operations[0]['op']}-{len(list(self.home.iterdir()))}.json"
        document = {"version": 1, "base_model": f"org/{base}", "operations": operations}
        path.write_text(json.dumps({**document, "output": str(path.with_suffix("")), **more}))
        return str(path)

    def forget(self, base):
        """Empty the counters of ``org/BASE``, and return its repository."""
        repository = self.repositories[base]
        for counter in (repository.sent, repository.ranges, repository.asked):
            counter.clear()
        return repository


def sharded(source, place):
    """The same checkpoint in two files."""
    shutil.copytree(source, place)
    (place / WEIGHTS).unlink()
    tensors = Checkpoint.open(source).tensors
    raw = (source / WEIGHTS).read_bytes()
    weight_map = {}
    for number, names in enumerate([list(tensors)[:20], list(tensors)[20:]], start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        held = {name: tensors[name] for name in names}
        header = encode_header([(name, one.dtype, one.shape, one.nbytes) for name, one in held.items()])
        (place / shard).write_bytes(header + b"".join(raw[t.offset : t.offset + t.nbytes] for t in held.values()))
        weight_map |= dict.fromkeys(names, shard)
    (place / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return place


def weights_sent(repository):
    """Bytes of weight files that were sent, and those of their headers."""
    files = [path for path in repository.folder.iterdir() if path.suffix == ".safetensors"]
    return sum(repository.sent[file.name] for file in files), sum(read_header(file).data_start for file in files)


def endless(demo, place):
    """A checkpoint of 1.3 GB that takes no room: tables of two million rows, all holes."""
    shutil.copytree(demo, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "vocab_size": 2_000_000}))
    shapes = {name: (one.dtype, one.shape) for name, one in Checkpoint.open(demo).tensors.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = ("BF16", (2_000_000, 160))
    entries = [(name, dtype, shape, 2 * int(np.prod(shape))) for name, (dtype, shape) in shapes.items()]
    header = encode_header(entries)
    (place / WEIGHTS).write_bytes(header)
    os.truncate(place / WEIGHTS, len(header) + sum(entry[3] for entry in entries))
    return place


def spoiled(demo, place, raw):
    """A checkpoint whose weight file has the bytes ``raw``."""
    shutil.copytree(demo, place)
    (place / WEIGHTS).write_bytes(raw)
    return place


def tied(demo, place):
    """A checkpoint whose tables are tied by its config, stored twice, and equal."""
    shutil.copytree(demo, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = Checkpoint.open(demo).tensors
    one, other = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    raw = bytearray((demo / WEIGHTS).read_bytes())
    raw[other.offset : other.offset + other.nbytes] = raw[one.offset : one.offset + one.nbytes]
    (place / WEIGHTS).write_bytes(raw)
    return place


#: Faults of the server, or of the network in between.
FAULTS = (
    "absent", "gated", "unauthorized", "forbidden", "down", "another size", "another commit", "changed in between", "cut short",
)  # fmt: skip


@pytest.fixture(scope="module")
def setting(demo, tmp_path_factory):
    served, home = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("home")
    raw = (demo / WEIGHTS).read_bytes()
    repositories = {
        "one": Repository(demo),
        "two": Repository(sharded(demo, served / "two")),
        "private": Repository(demo, "private"),
        "silent": Repository(demo, "silent"),
        "tied": Repository(tied(demo, served / "tied")),
        "endless": Repository(endless(demo, served / "endless"), "whole files only"),
        "replaced": Repository(demo, "another file"),
        "truncated": Repository(spoiled(demo, served / "truncated", raw[:1000])),
        "empty": Repository(spoiled(demo, served / "empty", b"")),
        "long": Repository(spoiled(demo, served / "long", (2**25 + 1).to_bytes(8, "little") + bytes(2**26))),
        **{fault.replace(" ", "-"): Repository(demo, fault) for fault in FAULTS},
    }
    with hub(**repositories) as endpoint, commands(endpoint, home, HF_TOKEN=TOKEN) as run:
        yield Setting(run, home, repositories)


def test_plan_inspect_and_init_transfer_headers_alone(setting):
    planned = setting.recipe("two", LORA, **NOT_RUN)
    for arguments in (["plan", planned, "--json"], ["init", "org/two"], ["inspect", "org/two", "--json"]):
        repository = setting.forget("two")
        code, out, err = setting.run(*arguments)
        assert (code, err) == (0, "")
        sent, headers = weights_sent(repository)
        assert sent == headers < 0.01 * sum(file.stat().st_size for file in repository.folder.glob("*.safetensors"))
        assert len(repository.ranges) == 4, "two requests for each file"
    assert [table["live"] for table in json.loads(out)["tables"]] == [None, None]
    assert json.loads(out)["bytes_on_hub"] == sum(f.stat().st_size for f in repository.folder.glob("*.safetensors"))


def test_the_small_files_come_once_and_are_read_of_one_commit(setting):
    repository = setting.forget("one")
    assert setting.run("inspect", "org/one")[0] == 0
    assert repository.sent["config.json"] == (repository.folder / "config.json").stat().st_size
    assert all(f"/{repository.commit}" in asked for asked in repository.asked[1:]), (
        "only the first request names a branch"
    )
    repository = setting.forget("one")
    code, out, _ = setting.run("inspect", "org/one")
    assert code == 0
    assert set(repository.sent) == {WEIGHTS}
    assert "rows not looked at: 3.2 MB of weights are on the hub" in out


@pytest.mark.parametrize("operation", [LORA, {"op": "add_adapter", "peft_type": "IA3"}], ids=lambda one: one["op"])
def test_an_adapter_that_starts_at_zero_is_written_from_headers(setting, demo, operation):
    repository = setting.forget("two")
    path = setting.recipe("two", operation, **NOT_RUN)
    code, out, err = setting.run("apply", path)
    assert (code, err) == (0, "")
    assert "3.2 MB stay on the hub" in out
    sent, headers = weights_sent(repository)
    assert sent == headers
    local = setting.recipe("two", operation, **NOT_RUN, base_model=str(demo))
    assert setting.run("apply", local)[0] == 0
    made, alike = (
        Path(one).with_suffix("").joinpath("adapter/adapter_model.safetensors").read_bytes() for one in (path, local)
    )
    assert made == alike


@pytest.mark.parametrize(
    "more", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa", "exact": True}]
)
def test_an_adapter_that_takes_values_of_the_base_says_that_they_are_downloaded(setting, more):
    code, out, _ = setting.run("plan", setting.recipe("tied", {**LORA, **more}, **NOT_RUN), "--json")
    assert code == 0
    assert json.loads(out)["bytes_to_download"] > 3_000_000


def test_what_runs_the_model_downloads_it_once(setting, demo):
    path = setting.recipe("one", LORA)
    repository = setting.forget("one")
    code, out, err = setting.run("apply", path)
    assert (code, err) == (0, "")
    assert "3.2 MB to download" in out
    size, header = (demo / WEIGHTS).stat().st_size, read_header(demo / WEIGHTS).data_start
    assert weights_sent(repository) == (size + header, header)
    repository = setting.forget("one")
    code, out, _ = setting.run("apply", path, "--if-changed", "--json")
    assert (code, json.loads(out)["up_to_date"]) == (0, True)
    code, out, _ = setting.run("inspect", "org/one", "--json")
    assert (code, json.loads(out)["bytes_on_hub"]) == (0, 0)
    assert json.loads(out)["tables"][0]["live"] > 2000
    assert repository.asked == [], "what is cached needs no request"


def test_a_new_base_is_written_from_downloaded_shards(setting, demo):
    path = setting.recipe("two", {"op": "extend_vocab", "tokens": ["zqx"]}, **NOT_RUN)
    code, _, err = setting.run("apply", path)
    assert (code, err) == (0, "")
    made, source = Checkpoint.open(Path(path).with_suffix("")), Checkpoint.open(demo)
    name = "model.layers.1.mlp.up_proj.weight"
    assert equal_bytes(made.tensors[name], source.tensors[name])


def test_tables_that_are_stored_twice_are_compared_by_ranges(setting):
    repository = setting.forget("tied")
    code, out, err = setting.run("inspect", "org/tied", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["tied"]
    sent, headers = weights_sent(repository)
    assert sent == headers + 2 * 2048 * 160 * 2


def test_a_server_that_knows_no_ranges_is_not_listened_to_behind_the_header(setting):
    repository = setting.forget("endless")
    code, _, err = setting.run("inspect", "org/endless")
    assert (code, err) == (0, "")
    assert repository.sent[WEIGHTS] < 0.1 * (repository.folder / WEIGHTS).stat().st_size, (
        "what the system buffers, at most"
    )


@pytest.mark.parametrize(
    ("base", "code", "says"),
    [
        ("absent", 3, "is neither a folder nor a hub repository, or it is private and HF_TOKEN does not open it"),
        ("gated", 3, "is gated; accept its terms on the hub, then run `hf auth login` or set HF_TOKEN"),
        ("unauthorized", 3, "the hub refuses access (401); run `hf auth login`, or set HF_TOKEN to a token that may"),
        ("forbidden", 3, "the hub refuses access (403); run `hf auth login`, or set HF_TOKEN to a token that may"),
        ("down", 5, "the hub refused the download: Server error '500 Internal Server Error'"),
        ("truncated", 3, "model.safetensors: is truncated or no safetensors file: it holds 1000 bytes in all"),
        ("empty", 3, "model.safetensors: is truncated or no safetensors file: it holds 0 bytes in all"),
        ("long", 3, "model.safetensors: its header has 33554433 bytes; graftkit reads at most 33554432"),
        ("another-size", 5, "model.safetensors: changed on the hub while it was read; run again"),
        ("another-commit", 5, "model.safetensors: changed on the hub while it was read; run again"),
        ("changed-in-between", 5, "model.safetensors: changed on the hub while it was read; run again"),
        ("cut-short", 5, "the hub cannot be reached: peer closed connection without sending complete message body"),
    ],
)
def test_each_failure_is_one_line(setting, base, code, says):
    found, out, err = setting.run("plan", setting.recipe(base, LORA))
    assert (found, out) == (code, "")
    assert err.startswith(f"graftkit: org/{base}: ")
    assert says in err
    assert err.count("\n") == 1
    if base == "long":
        assert setting.repositories[base].sent[WEIGHTS] == 8


def test_the_token_goes_with_every_request(setting):
    assert setting.run("inspect", "org/private")[0] == 0
    assert len(setting.repositories["private"].ranges) == 2


def test_a_hub_that_never_answers_is_not_waited_for(setting):
    """huggingface_hub itself asks for a repository without a timeout."""
    code, _, err = setting.run("inspect", "org/silent")
    assert code == 5
    assert err.startswith("graftkit: org/silent: is not wholly cached, and the hub cannot be reached: Got: ReadTimeout")
    assert err.count("\n") == 1


def test_a_revision_that_is_not_there(setting):
    assert setting.run("inspect", "org/one", "--revision", "v2") == [
        3,
        "",
        "graftkit: org/one: has no revision 'v2' on the hub\n",
    ]


def test_a_download_that_is_not_what_was_described(setting):
    code, _, err = setting.run("apply", setting.recipe("replaced", LORA))
    assert code == 5
    assert err == f"graftkit: org/replaced: {WEIGHTS}: is not what the hub described before; run again\n"
    assert not [path for path in setting.home.glob("replaced-*") if path.is_dir()]


DOWNLOAD = """
import json, sys
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.weights_on_hub import bytes_on_hub, download_weights
told = []
checkpoint = Checkpoint.open("org/tiny", weights=False)
before = bytes_on_hub(checkpoint)
download_weights(checkpoint, lambda done, total: told.append([done, total]))
print(json.dumps([before, bytes_on_hub(checkpoint), told[-1]]))
"""


def test_a_download_tells_how_far_it_is_and_prints_nothing(demo, tmp_path):
    with hub(tiny=Repository(demo)) as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", DOWNLOAD], capture_output=True, text=True, check=True, cwd=tmp_path,
            env=environment(endpoint, tmp_path) | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    size = (demo / WEIGHTS).stat().st_size
    assert json.loads(done.stdout) == [size, 0, [size, size]]
    assert done.stderr == ""


def test_no_hub_at_all(tmp_path):
    with commands("http://127.0.0.1:9", tmp_path) as run:
        code, out, err = run("plan", Setting(run, tmp_path, {}).recipe("one", LORA))
    assert (code, out) == (5, "")
    assert err.startswith("graftkit: org/one: is not wholly cached, and the hub cannot be reached: ")
    assert err.count("\n") == 1
