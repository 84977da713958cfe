"""The whole command line, killed at system calls that change the disk: the old output, the new one, or none."""

import json
import shutil
import subprocess
import sys

import pytest
from support.strace import calls_of, inject, needs_strace
from support.tried import tried

pytestmark = [pytest.mark.slow, needs_strace]


def command(demo, place, *, overwrite):
    """`graftkit apply` of the demo model into ``place/out``, which holds something old where ``overwrite`` says so."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    recipe = {
        "version": 1,
        "base_model": str(demo),
        "operations": [{"op": "extend_vocab", "special_tokens": ["<|new|>"]}],
        "verify": {"outputs": False},
        "output": str(place / "out"),
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    if overwrite:
        (place / "out").mkdir()
        (place / "out" / "old.txt").write_text("old")
        (place / "out" / "graft_report.json").write_text("{}")
    flags = ["--overwrite"] if overwrite else []
    return [sys.executable, "-m", "graftkit", "apply", place / "recipe.yaml", "-q", *flags]


def state(output):
    """The bytes of an output, by file; what tells the time of the run is left out."""
    if not output.exists():
        return None
    told = ("graft_report.json", "graft_report.html", "README.md")
    return {p.name: b"" if p.name in told and len(p.read_bytes()) > 2 else p.read_bytes() for p in output.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
def test_killed_anywhere_the_output_is_whole_and_the_next_run_succeeds(demo, tmp_path, overwrite):
    place = tmp_path / "run"
    line = command(demo, place, overwrite=overwrite)
    old = state(place / "out")
    most = calls_of(line, tmp_path / "log")
    new = state(place / "out")
    assert {"rename", "renameat2"} & most.keys()
    assert most["fsync"] > 3
    seen = set()
    with tried(f"killed at a write-class call{', replacing' * overwrite}") as codes:
        for call, count in most.items():
            for position in sorted({1, count // 2 + 1, count}):
                done = inject(command(demo, place, overwrite=overwrite), call, position, "signal=KILL")
                found = state(place / "out")
                assert found in (old, new), f"torn after a kill at {call} {position}"
                seen.add(found == new)
                codes[done.returncode] += 1
                if found == new and not overwrite:
                    shutil.rmtree(place / "out")
                again = subprocess.run([str(part) for part in line], capture_output=True, text=True, check=False)
                assert again.returncode == 0, f"after a kill at {call} {position}: {again.stderr}"
                assert state(place / "out") == new
                assert sorted(path.name for path in place.iterdir()) == ["out", "recipe.yaml"]
    assert False in seen


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_failing_call_leaves_nothing_torn(demo, tmp_path, fault):
    place = tmp_path / "run"
    line = command(demo, place, overwrite=True)
    old = state(place / "out")
    most = calls_of(line, tmp_path / "log")
    new = state(place / "out")
    with tried(f"a write-class call fails: {fault}") as codes:
        for call in sorted(
            most.keys() & {"write", "copy_file_range", "fsync", "rename", "renameat2", "mkdir", "linkat"}
        ):
            for position in sorted({1, most[call] // 2 + 1, most[call]}):
                done = inject(command(demo, place, overwrite=True), call, position, f"error={fault}")
                where = f"{fault} at {call} {position}: {done.returncode} {done.stderr}"
                found = state(place / "out")
                assert found in (old, new), where
                assert len(done.stderr.splitlines()) <= 1, where
                assert done.returncode in (0, 5, 7), where
                assert (found == new) == (done.returncode in (0, 7)), where
                codes[done.returncode] += 1
