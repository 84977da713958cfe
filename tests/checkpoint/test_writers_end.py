"""Whoever is told that writing failed finds no thread that still writes, even where a signal comes behind the error."""

import subprocess
import sys

from support.tiny import build

#: One writer fails, another is in the middle of its file, and then the process is asked to stop.
PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.write import write_checkpoint

failed, ended, source = threading.Event(), [], Checkpoint.open(sys.argv[1])

def stop_behind_the_error():
    failed.wait()
    time.sleep(0.5)  # by now the main thread waits for the other writer
    os.kill(os.getpid(), signal.SIGINT)

def progress(nbytes):
    if not failed.is_set():
        failed.set()
        raise OSError("no space")
    time.sleep(1.5)
    ended.append(nbytes)

threading.Thread(target=stop_behind_the_error).start()
target = Path(sys.argv[2])
target.mkdir()
try:
    write_checkpoint(source, source, target, progress=progress)
except KeyboardInterrupt as error:
    writers = [thread.name for thread in threading.enumerate() if "ThreadPool" in thread.name]
    print(len(writers), bool(ended), type(error.__context__).__name__)
"""


def test_a_signal_behind_an_error_acts_when_the_writers_have_ended(tmp_path):
    build("LlamaForCausalLM", tmp_path / "model", max_shard_size="60KB")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "model", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["0", "True", "OSError"], done.stderr
