"""A child process with limits: for what a file can make go on for ever, or grow, inside a library that nothing interrupts."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

#: Seconds of the processor and bytes of address space that a child may use, and seconds that may pass until it has.
SECONDS, BYTES, PATIENCE = 5, 2 << 30, 300

_LIMITS = """
import contextlib, json, resource, sys
job = json.loads(sys.stdin.buffer.read())
sys.path[:] = job["path"]
resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"] + 1))
with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of address space: there only time bounds
    resource.setrlimit(resource.RLIMIT_AS, (job["bytes"], job["bytes"]))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""


class OutOfBounds(Exception):
    """The child used more than it may, and was stopped."""


def run_in_child(program: str, job: dict[str, Any]) -> Any:
    """Run Python text that finds ``job`` and prints one JSON value, with this process's import path; return the value, None for none.

    Raises:
        OutOfBounds: it was stopped, at a limit or by a crash.
        OSError: no process could be started.
    """
    limits = {"path": sys.path, "seconds": SECONDS, "bytes": BYTES}
    line = [sys.executable, "-I", "-c", _LIMITS + program]
    text = json.dumps({**limits, **job}).encode()
    try:
        done = subprocess.run(line, input=text, capture_output=True, check=False, timeout=PATIENCE)  # noqa: S603 - ours
    except subprocess.TimeoutExpired as error:
        raise OutOfBounds from error
    if done.returncode:
        raise OutOfBounds
    return json.loads(done.stdout) if done.stdout.strip() else None
