"""Real torchrun, and processes as srun starts them: what ranks write is what one process writes, and a fault in one ends all."""

import json
import shutil
import signal
import struct
from collections import Counter

import pytest
from support.command import here
from support.ranks import said, srun, torchrun, warm_ranks
from support.recipes import recipe
from support.tiny import build
from support.tried import tried

from graftkit.ranks.assignment import assign


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small model in several shards."""
    place = tmp_path_factory.mktemp("ranks") / "model"
    build("LlamaForCausalLM", place, max_shard_size="60KB")
    assert len(list(place.glob("*.safetensors"))) > 3
    return place


def write_recipe(source, place, *operations, **others):
    operations = operations or ({"op": "extend_vocab", "special_tokens": ["<|new|>"]},)
    (place / "recipe.yaml").write_text(json.dumps(recipe(source, place / "deep" / "out", *operations, **others)))
    return place / "recipe.yaml"


def files_of(output):
    """The bytes of every file; of the report, and of what is made of it, all but seconds and digests of those."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(held) for key, held in value.items() if key not in ("seconds", "sha256_of_this_report")}
        return [plain(held) for held in value] if isinstance(value, list) else value

    found = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    report = plain(json.loads(found["graft_report.json"]))
    report.pop("by_ranks", None)
    report["files"] = [entry for entry in report["files"] if entry["name"] != "graft_report.html"]
    return {**found, **leaves("report", report), "graft_report.json": None, "graft_report.html": None}


def leaves(place, value):
    """Every single value of a report by its place."""
    if not isinstance(value, dict | list) or not value:
        return {place: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {name: leaf for key, held in items for name, leaf in leaves(f"{place}.{key}", held).items()}


def largest_of_rank(source, rank, count):
    """The largest shard of those that this rank writes; with new rows alone, the shards have the order of the source's."""
    sizes = {path.name: path.stat().st_size for path in source.glob("*.safetensors")}
    return source / assign(sizes, count)[rank][0]


def is_clean(place):
    return sorted(path.name for path in place.iterdir()) == ["recipe.yaml"]


def test_two_ranks_write_what_one_process_writes(source, tmp_path):
    operations = [
        {"op": "extend_vocab", "special_tokens": ["<|new|>"]},
        {"op": "reinit", "layers": "last 1"},
    ]
    path = write_recipe(source, tmp_path, *operations)
    done = torchrun(2, "apply", path)
    assert done.returncode == 0, done.stderr
    assert not said(done)
    assert done.stdout.count("written to") == 1
    together = files_of(tmp_path / "deep" / "out")
    shutil.rmtree(tmp_path / "deep")
    alone = here("apply", path)
    assert alone.returncode == 0, alone.stderr
    by_one = files_of(tmp_path / "deep" / "out")
    assert together.keys() == by_one.keys()
    assert {name: (held, by_one[name]) for name, held in together.items() if held != by_one[name]} == {}
    after = [value for place, value in together.items() if place.endswith("rms_after")]
    assert after
    assert None not in after


def test_a_bad_shard_of_one_rank_ends_all_with_its_exit_code(source, tmp_path):
    shutil.copytree(source, tmp_path / "model")
    shard = largest_of_rank(source, 1, 2)
    raw = bytearray((tmp_path / "model" / shard.name).read_bytes())
    header = struct.unpack("<Q", raw[:8])[0]
    raw[8 + header : 8 + header + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "model" / shard.name).write_bytes(raw)
    (tmp_path / "run").mkdir()
    path = write_recipe(tmp_path / "model", tmp_path / "run")
    codes, printed, complaints = srun(2, "apply", path)
    assert codes == [3, 3], complaints
    assert len(complaints) == 1
    assert complaints[0].startswith("graftkit: rank 1: ")
    assert "not finite" in complaints[0]
    assert not printed[1]
    assert is_clean(tmp_path / "run")


@pytest.mark.slow
def test_a_rank_that_is_killed_leaves_nothing_and_the_next_run_succeeds(source, tmp_path):
    path = write_recipe(source, tmp_path)
    done = torchrun(2, "apply", path, fault="1 kill 5")
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    assert [line for line in said(done) if "interrupted; nothing was written" not in line] == []
    assert len(said(done)) <= 1
    assert is_clean(tmp_path), list(tmp_path.rglob("*"))
    assert here("apply", path, "-q", "verify={outputs: false}").returncode == 0


@pytest.mark.slow
def test_a_rank_that_cannot_write_ends_all(source, tmp_path):
    path = write_recipe(source, tmp_path)
    codes, _, complaints = srun(2, "apply", path, fault="1 small 20000")
    assert codes == [5, 5], complaints
    assert len(complaints) == 1
    assert complaints[0].startswith("graftkit: rank 1: ")
    assert "nothing was written" in complaints[0]
    assert is_clean(tmp_path)


@pytest.mark.slow
def test_killed_at_a_hundred_points_with_four_ranks(source, tmp_path):
    """Any rank, from the first to the last time that it touches the staging directory.

    Only rank 0, killed before the others know where that is, leaves what one process leaves that is killed; the next run takes it over.
    """
    path = write_recipe(source, tmp_path, verify={"outputs": False})
    output, ended = tmp_path / "deep" / "out", Counter()
    with warm_ranks() as run, tried("one of four ranks killed at a step in the staging directory") as codes:
        for point in range(100):
            rank, number = point % 4, 1 + point // 4
            done = run(4, "apply", path, "-q", fault=f"{rank} kill {number}")
            where = f"rank {rank}, {number}: {done}"
            assert not done["overdue"], where
            assert len(done["said"]) <= 1, where
            is_killed, is_there = done["codes"][rank] == -signal.SIGKILL, output.exists()
            ended[rank, is_killed, is_there, is_clean(tmp_path)] += 1
            if is_there:  # killed behind the commit, or never reached the point
                assert (output / "graft_report.json").is_file(), where
                assert [item.name for item in output.parent.iterdir()] == ["out"], where
                shutil.rmtree(output)
            elif rank != 0:
                left = sorted(str(path.relative_to(output.parent)) for path in output.parent.rglob("*"))
                assert is_clean(tmp_path), f"{where} left {left}"
            codes[max(done["codes"])] += 1
            again = run(1, "apply", path, "-q")
            assert again["codes"] == [0], (where, again)
            assert [item.name for item in output.parent.iterdir()] == ["out"], where
            shutil.rmtree(output.parent)
    assert all(ended[rank, True, False, True] for rank in range(4)), ended
