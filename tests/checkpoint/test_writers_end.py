"""Whoever is told that writing failed finds no thread that still writes, even where a signal comes behind the error."""

import subprocess
import sys

from support.tiny import build

#: The main thread fails while a writer is in the middle of its file, and then the process is asked to stop.
PROGRAM = """
import dataclasses, os, signal, sys, threading, time
from pathlib import Path
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.write import write_checkpoint

begun, asked, ended = threading.Event(), threading.Event(), []

class Failing(dict):
    def items(self):
        begun.wait()
        raise OSError("no space")

def functions():
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back

def stop_behind_the_error():
    while "shutdown" not in functions():  # the main thread has the error, and waits for the writers
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    asked.set()

def progress(nbytes):
    begun.set()
    asked.wait()
    ended.append(nbytes)

source = Checkpoint.open(sys.argv[1])
result = dataclasses.replace(source, documents=Failing(source.documents))
threading.Thread(target=stop_behind_the_error).start()
target = Path(sys.argv[2])
target.mkdir()
try:
    write_checkpoint(source, result, target, progress=progress)
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
        timeout=600,
    )
    assert done.stdout.split() == ["0", "True", "OSError"], done.stderr
