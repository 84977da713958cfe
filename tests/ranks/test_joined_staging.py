"""One staging directory of several ranks: no other run takes it while one may write, and the last that leaves cleans up."""

import subprocess
import sys

import pytest

from graftkit.checkpoint.joined_staging import JoinedStaging
from graftkit.checkpoint.staging import Staging, staging_path
from graftkit.errors import Locked, StorageFault

PATIENCE = 0.3


class Broken(Exception):
    pass


def joined(staging, output):
    inode, made = staging.share()
    return JoinedStaging(output, inode, made, PATIENCE)


def test_what_a_rank_wrote_is_committed_by_the_first(tmp_path):
    output = tmp_path / "deep" / "out"
    with Staging(output) as first, joined(first, output) as second:
        (second.path / "a").write_text("a")
        second.written(second.path / "a")
        second.settle()
        first.commit()
    assert (output / "a").read_text() == "a"
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_the_last_that_leaves_a_failed_attempt_removes_everything(tmp_path, first_leaves_first):
    output = tmp_path / "deep" / "out"
    first = Staging(output).__enter__()
    second = joined(first, output).__enter__()
    ranks = [first, second] if first_leaves_first else [second, first]
    ranks[0].__exit__(Broken, Broken(), None)
    assert staging_path(output).is_dir()
    with pytest.raises(Locked), Staging(output):
        pass
    ranks[1].__exit__(Broken, Broken(), None)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_alone_cleans_up_behind_one_that_was_killed(tmp_path):
    output = tmp_path / "deep" / "out"
    program = (
        "import os, signal, sys; from pathlib import Path; from graftkit.checkpoint.staging import Staging\n"
        "staging = Staging(Path(sys.argv[1])).__enter__()\n"
        "print(staging.share()[0], flush=True); input(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        inode = int(killed.stdout.readline())
        with pytest.raises(Broken), JoinedStaging(output, inode, [output.parent], PATIENCE) as second:
            killed.communicate("\n")
            (second.path / "a").write_text("a")
            raise Broken
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_never_shows_is_no_shared_file_system(tmp_path):
    with pytest.raises(StorageFault, match="all ranks share"), JoinedStaging(tmp_path / "out", 1, [], PATIENCE):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_another_run_is_left_alone(tmp_path):
    output = tmp_path / "out"
    with Staging(output) as other:
        inode, _ = other.share()
        with pytest.raises(Locked), JoinedStaging(output, inode + 1, [], PATIENCE):
            pass
        (other.path / "a").write_text("a")
        other.commit()
    assert (output / "a").is_file()
