"""Kill or fail a command at each write-class system call that it makes, one run for each."""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter

import pytest

#: System calls that change what is on disk or who holds it.
CALLS = (
    "write", "pwrite64", "copy_file_range", "sendfile", "fsync", "fdatasync", "rename", "renameat2", "mkdir", "mkdirat",
    "unlink", "unlinkat", "rmdir", "ftruncate", "linkat", "link", "flock",
)  # fmt: skip

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def mind_interrupts():
    """What a shell runs in the background ignores SIGINT, and so does all that is started from there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(command, *options, env=None):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    line = ["strace", "-f", "-qq", *options, *map(str, command)]
    return subprocess.run(
        line,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        preexec_fn=mind_interrupts,
    )


def calls_of(command, log, env=None):
    """``(system call, how often the busiest thread makes it)`` for each write-class call of a clean run."""
    done = run(command, "-o", log, "-e", f"trace={','.join(CALLS)}", env=env)
    assert done.returncode == 0, done.stderr
    counts = Counter(re.match(r"(\d+) +(\w+)\(", line).groups() for line in open(log) if re.match(r"\d+ +\w+\(", line))
    most = Counter()
    for (_, call), count in counts.items():
        most[call] = max(most[call], count)
    return most


def inject(command, call, place, fault, env=None):
    """Run the command with ``fault`` (such as ``signal=KILL`` or ``error=ENOSPC``) at the ``place``-th such call."""
    return run(command, "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={place}", env=env)
