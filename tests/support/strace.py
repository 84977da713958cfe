"""Kill or fail a command at each system call of some kinds that it makes, one run for each."""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

#: System calls that change what is on disk or who holds it.
CALLS = (
    "write", "pwrite64", "copy_file_range", "sendfile", "fsync", "fdatasync", "rename", "renameat2", "mkdir", "mkdirat",
    "unlink", "unlinkat", "rmdir", "ftruncate", "fallocate", "chmod", "fchmod", "linkat", "link", "flock",
)  # fmt: skip

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def mind_interrupts():
    """What a shell runs in the background ignores SIGINT, under nohup SIGHUP too, and so does all that is started from there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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


#: A line of strace's log with -f -y: a call and its arguments; and a path among these, behind a descriptor or as text.
_CALL, _PATH = re.compile(r"(\d+) +(\w+)\((.*)"), re.compile(r'(?<!AT_FDCWD)<(/[^>]*)>|"(/[^"]*)"')


def attach(running, *options):
    """strace on a command of `support.warm` that waits for it."""
    return subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(running.pid), *map(str, options)], stderr=subprocess.DEVNULL
    )


def traced(warm, arguments, *options):
    """A command of `support.warm` that ended under strace."""
    running = warm.start(*arguments, traced=True)
    tracer = attach(running, *options)
    running.wait()
    tracer.wait()
    return running


def points_of(warm, arguments, place, log, calls=CALLS):
    """Each ``(call, path, number)`` of a clean run, in order: the number-th such call of a thread on a file or folder in ``place``.

    Where two threads make the same call on the same path, strace cannot tell these apart, and only the first of them is a point.
    """
    done = traced(warm, arguments, "-y", "-o", log, "-e", f"trace={','.join(calls)}")
    assert done.code == 0, done.said
    counts, points = Counter(), []
    for line in open(log):
        if found := _CALL.match(line):
            thread, call, rest = found.groups()
            paths = [path for pair in _PATH.findall(rest) for path in pair if Path(path).is_relative_to(place)]
            if paths:
                counts[thread, call, paths[0]] += 1
                point = (call, paths[0], counts[thread, call, paths[0]])
                points += [point] if point not in points else []
    return points


def at_point(warm, arguments, point, fault):
    """The command with a fault, such as ``signal=KILL`` or ``error=EIO``, at one of its :func:`points_of`."""
    call, path, number = point
    return traced(
        warm,
        arguments,
        "-o",
        "/dev/null",
        "-P",
        path,
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{fault}:when={number}",
    )
