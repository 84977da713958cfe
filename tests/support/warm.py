"""The whole command in a process that has its imports behind it: half a second for each run, where a fresh one takes six.

A parent has imported what the command imports and built the tables that libraries build once, by running commands of the same kind on
other folders. For each run it forks a child that becomes the command: `graftkit.__main__.main`, with a standard output and error of its
own, up to the functions that the interpreter calls at its end. Every system call is the command's own. What is missing is the time in
which Python starts and imports, and the interpreter taking itself apart, which changes nothing on a disk.
"""

import atexit
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]

#: `prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)`: strace is no ancestor of what it traces here.
MAY_BE_TRACED = (0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)

#: Seconds in which strace must have attached itself.
PATIENCE = 120

#: Bytes at which a command is stopped: no scene needs a tenth of them.
MEMORY = 8 << 30

#: One thread, since a process with more does not fork well; pyarrow's allocator has one of its own unless it is told.
SINGLE = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class Warm:
    """A parent of commands that keeps their output in ``room``; a context manager."""

    def __init__(self, room):
        from support.strace import mind_interrupts

        self._room, self._number = Path(room), 0
        path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **SINGLE, "PYTHONPATH": path}, preexec_fn=mind_interrupts,  # noqa: PLW1509 - before any thread
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def learn(self, *arguments):
        """Run a command in the parent itself, on folders that no other run reads: what it imports is imported for all."""
        assert self._ask({"learn": [str(part) for part in arguments]}) == 0

    def start(self, *arguments, traced=False):
        """A command that runs; with ``traced`` it waits until a tracer is attached."""
        self._number += 1
        place = self._room / str(self._number)
        place.mkdir(parents=True)
        job = {"arguments": [str(part) for part in arguments], "place": str(place), "traced": traced}
        return Running(self._ask({"start": job}), place, self._ask)

    def run(self, *arguments):
        """A command that has ended."""
        running = self.start(*arguments)
        running.wait()
        return running

    def _ask(self, question):
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Running:
    """A command that was started: its ``pid``; when it has ended its ``code``, negative for a signal, the most ``memory`` that it held in bytes,
    its parent's imports included, and what it ``said`` on standard error.
    """

    def __init__(self, pid, place, ask):
        self.pid, self._place, self._ask, self.code, self.memory = pid, place, ask, None, None

    def wait(self):
        self.code, self.memory = self._ask({"wait": self.pid})
        return self.code

    @property
    def is_alive(self):
        """Whether it has not ended; asked before :meth:`wait`."""
        return "\nState:\tZ" not in Path(f"/proc/{self.pid}/status").read_text()

    @property
    def said(self):
        return (self._place / "stderr").read_text()


def _serve():
    """Answer one question a line until there are no more; a child that is to become a command returns with what it shall be."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        ((what, about),) = json.loads(line).items()
        if what == "start":
            assert len(os.listdir("/proc/self/task")) == 1, "there are threads"
            answer = os.fork()
            if not answer:
                return about
        elif what == "wait":
            _, status, usage = os.wait4(about, 0)
            answer = os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10
        else:
            answer = _learn(about)
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()
    raise SystemExit


def _learn(arguments):
    from graftkit.cli import run

    code = run(arguments)
    gc.collect()
    gc.freeze()  # a child that looks for garbage would copy all of it
    return code


def _become(job):
    """Be the command, to its end."""
    place = Path(job["place"])
    for number, name in enumerate(("/dev/null", place / "stdout", place / "stderr")):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(descriptor, number)
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if job["traced"]:
        _wait_for_a_tracer()
    from graftkit.__main__ import main

    sys.argv = ["graftkit", *job["arguments"]]
    try:
        main()
    except SystemExit as stop:
        threading._shutdown()  # these two as the interpreter does, in its order
        atexit._run_exitfuncs()
        os._exit(stop.code)


def _wait_for_a_tracer():
    ctypes.CDLL(None).prctl(*MAY_BE_TRACED)
    until = time.monotonic() + PATIENCE
    while "\nTracerPid:\t0\n" in Path("/proc/self/status").read_text():
        assert time.monotonic() < until, "no tracer came"
        time.sleep(0.002)


if __name__ == "__main__":
    _become(_serve())
