"""Ranks that hear nothing of one another any more, and ranks that plan different results."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from graftkit.errors import StorageFault
from graftkit.ranks.sameness import plan_marks, require_same

#: A rank that waits for a message that never comes; rank 1 stands still instead. Patience is two signs of life.
WAITING = """
import os, signal, sys
from graftkit.ranks import group
from graftkit.ranks.place import RankPlace

def stop(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
rank, port = int(sys.argv[1]), int(sys.argv[2])
group.SILENCE = 2 * group.BEAT
found = group.Group(RankPlace(rank, 2, "localhost", port, hosts=rank == 0))
found.join()
if rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
try:
    found.told("never")
except BaseException:
    print(found.dead)
    found.end(5)
    sys.stdout.flush()
    os._exit(5)
"""


def test_a_rank_that_stands_still_is_not_waited_for():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    line = [sys.executable, "-c", WAITING]
    ranks = [subprocess.Popen([*line, str(rank), str(port)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    try:
        said, _ = ranks[0].communicate(timeout=600)
        assert ranks[0].returncode == 5
        assert said == "rank 1 gave no sign of life for 2 s; nothing was written\n"
    finally:
        os.kill(ranks[1].pid, signal.SIGKILL)
        ranks[1].communicate()


def test_a_rank_that_plans_another_result_is_refused(demo, tmp_path):
    from support.recipes import recipe

    from graftkit.planning import plan

    plans = [
        plan(recipe(demo, tmp_path / "out", {"op": "extend_vocab", "special_tokens": tokens}))
        for tokens in (["<|a|>"], ["<|b|>"])
    ]
    marks = [plan_marks(planned) for planned in plans]
    require_same(marks[0], dict(marks[0]))
    with pytest.raises(StorageFault, match="^the lines of the recipe are not those of rank 0; nothing was written"):
        require_same(marks[0], marks[1])
    with pytest.raises(StorageFault, match="kernels and threads are not those of rank 0: .* here, x86 on rank 0"):
        require_same(marks[0], {**marks[0], "the processor's kernels and threads": "x86"})
