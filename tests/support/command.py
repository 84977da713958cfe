"""The command line: in a process of its own, or in this one, which saves the imports. Parsing, output and exit code are the same."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def real(*arguments, cwd=ROOT, **options):
    """A new process, as a user starts it."""
    command = [sys.executable, "-m", "graftkit", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options
    )


def here(*arguments, cwd=ROOT):
    """This process: for what the engine is tested with, where another test starts the command itself."""
    from graftkit.cli import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def assert_one_line(done, code, words):
    """The command ended with this exit code and one line that holds these words, and printed nothing else."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not done.stdout
    assert words in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
