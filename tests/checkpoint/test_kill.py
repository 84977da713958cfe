"""Killed, or out of space, at every system call that touches the disk: the old output, the new one, or none."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.strace import calls_of, inject, needs_strace

SCENARIO = Path(__file__).parent / "kill_scenario.py"
NEW = {"a": b"aaaaaa", "b": b"aaanew", "graft_report.json": b"{}"}
OLD = {"a": b"old a!", "graft_report.json": b"{}"}


def state(output):
    if not output.exists():
        return None
    return {path.name: path.read_bytes() for path in output.iterdir()}


def scene(place, *, overwrite, how="staged"):
    shutil.rmtree(place, ignore_errors=True)
    (place / "source").mkdir(parents=True)
    (place / "source" / "a").write_bytes(NEW["a"])
    if overwrite:
        (place / "out").mkdir()
        for name, data in OLD.items():
            (place / "out" / name).write_bytes(data)
    flags = ["--overwrite"] if overwrite else []
    return [sys.executable, SCENARIO, place / "source", place / "out", how, *flags]


def every_place(tmp_path, *, overwrite, how="staged"):
    most = calls_of(scene(tmp_path / "count", overwrite=overwrite, how=how), tmp_path / "log")
    assert sum(most.values()) > 3
    for call, count in most.items():
        for place in range(1, count + 1):
            yield call, place


@needs_strace
@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
def test_killed_anywhere_the_output_is_whole_and_the_next_run_succeeds(tmp_path, overwrite):
    seen = set()
    for call, place in every_place(tmp_path, overwrite=overwrite):
        command = scene(tmp_path / "run", overwrite=overwrite)
        inject(command, call, place, "signal=KILL")
        found = state(tmp_path / "run" / "out")
        assert found in ((OLD if overwrite else None), NEW), f"torn after a kill at {call} {place}"
        seen.add(found == NEW)
        if found == NEW and not overwrite:
            shutil.rmtree(tmp_path / "run" / "out")
        again = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert again.returncode == 0, f"after a kill at {call} {place}: {again.stderr}"
        assert state(tmp_path / "run" / "out") == NEW
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["out", "source"]
    assert False in seen


@needs_strace
@pytest.mark.parametrize("fault", ["ENOSPC", pytest.param("EIO", marks=pytest.mark.slow)])
@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
def test_a_failing_call_leaves_nothing_torn(tmp_path, overwrite, fault):
    for call, place in every_place(tmp_path, overwrite=overwrite):
        done = inject(scene(tmp_path / "run", overwrite=overwrite), call, place, f"error={fault}")
        found = state(tmp_path / "run" / "out")
        assert found in ((OLD if overwrite else None), NEW), f"torn after {fault} at {call} {place}"
        assert done.returncode in (0, 5, 7), f"{call} {place}: {done.returncode} {done.stderr}"
        assert "Traceback" not in done.stderr, f"{call} {place}: {done.stderr}"
        assert (found == NEW) == (done.returncode in (0, 7)), f"{call} {place}: {done.returncode} {done.stderr}"


@needs_strace
def test_the_same_faults_tear_a_writer_that_writes_into_its_output(tmp_path):
    torn = 0
    for call, place in every_place(tmp_path, overwrite=True, how="naive"):
        inject(scene(tmp_path / "run", overwrite=True, how="naive"), call, place, "signal=KILL")
        torn += state(tmp_path / "run" / "out") not in (OLD, NEW)
    assert torn


@needs_strace
def test_where_directories_cannot_be_locked_the_mark_is(tmp_path):
    done = inject(scene(tmp_path / "run", overwrite=False), "flock", 1, "error=EBADF")
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / "run" / "out") == NEW
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["out", "source"]
    command = scene(tmp_path / "run", overwrite=False)
    staging = tmp_path / "run" / ".out.graftkit-staging"
    staging.mkdir()
    with open(staging / ".graftkit-staging", "w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        done = inject(command, "flock", 1, "error=EBADF")
    assert done.returncode == 6, done.stderr


def test_a_run_that_finds_the_directory_locked_gives_way(tmp_path):
    command = [str(part) for part in scene(tmp_path / "run", overwrite=False)]
    staging = tmp_path / "run" / ".out.graftkit-staging"
    staging.mkdir()
    held = os.open(staging, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    os.close(held)
    assert done.returncode == 6, done.stderr
    assert "another run is writing it" in done.stderr
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0


def test_many_at_once_have_one_winner(tmp_path):
    command = [str(part) for part in scene(tmp_path / "run", overwrite=False)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    codes = [process.wait() for process in running]
    for process in running:
        process.stderr.close()
    assert codes.count(0) == 1
    assert set(codes) <= {0, 2, 5, 6}
    assert state(tmp_path / "run" / "out") == NEW
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["out", "source"]


def test_a_directory_that_is_somebody_s_is_never_emptied(tmp_path):
    command = [str(part) for part in scene(tmp_path / "run", overwrite=False)]
    theirs = tmp_path / "run" / ".out.graftkit-staging"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("three years")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "not graftkit's" in done.stderr
    assert (theirs / "thesis.txt").read_text() == "three years"
