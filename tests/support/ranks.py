"""Commands that several processes share, as torchrun and as srun start them; and faults that one of them meets."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Runs the command line, with what FAULT says of one rank: ``rank kind number``.
FAULTY = Path(__file__).with_name("faulty_rank.py")


def environment(**more):
    """That of a test, with the threads of this process, so that bits and reports are comparable."""
    import torch

    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": path, **more}


def torchrun(count, *arguments, fault=None):
    """`torchrun -m graftkit` with these arguments, or with a fault the same through :data:`FAULTY`."""
    program = ["-m", "graftkit"] if fault is None else [FAULTY]
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", count, *program, *arguments]
    return subprocess.run(
        [str(part) for part in line], env=environment(**({"FAULT": fault} if fault else {})), cwd=ROOT,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=1800,
    )  # fmt: skip


def srun(count, *arguments, fault=None):
    """The exit code and the lines on both streams of each rank, started as srun does, which leaves those that live alone."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    step = {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(port)}
    step |= {"FAULT": fault} if fault else {}
    running = [
        subprocess.Popen(
            [sys.executable, str(FAULTY), *map(str, arguments)], env=environment(SLURM_PROCID=str(rank), **step), cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )
        for rank in range(count)
    ]  # fmt: skip
    told = [process.communicate(timeout=1800) for process in running]
    return (
        [process.returncode for process in running],
        [text.splitlines() for text, _ in told],
        [line for _, text in told for line in text.splitlines()],
    )


def said(done):
    """The lines on standard error that are graftkit's own, where torchrun adds its table."""
    return [line for line in done.stderr.splitlines() if re.match(r"(\[[^]]*\]: ?)?graftkit: ", line)]


@contextlib.contextmanager
def warm_ranks():
    """A function that runs a command in so many ranks, forked from a process that has imported everything: see support.warm_ranks."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    line = [sys.executable, "-m", "support.warm_ranks"]
    environment_of_ranks = {**environment(), "PYTHONPATH": path}
    with subprocess.Popen(
        line, env=environment_of_ranks, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def run(count, *arguments, fault=None):
            job = {"count": count, "arguments": [str(argument) for argument in arguments], "fault": fault}
            server.stdin.write(json.dumps(job) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()
