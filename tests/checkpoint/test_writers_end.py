"""Whoever is told that writing failed finds no thread that still writes, even where a signal comes behind the error or while a writer starts."""

import subprocess
import sys

import pytest
from support.tiny import build

#: Asks the process to stop while a writer is in the middle of its file: when the main thread has failed and waits for the writers, or
#: while it still starts one, for which it waits too.
PROGRAM = """
import dataclasses, os, signal, sys, threading, time
from pathlib import Path
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.write import write_checkpoint

begun, asked, ended, where = threading.Event(), threading.Event(), [], sys.argv[3]

class Failing(dict):
    def items(self):
        begun.wait()
        raise OSError("no space")

class Late(threading.Event):
    def wait(self, timeout=None):
        super().wait(timeout)
        time.sleep(1)
        return True

def functions():
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back

def stop():
    begun.wait()
    while where not in functions():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    asked.set()

def progress(nbytes):
    begun.set()
    asked.wait()
    ended.append(nbytes)

source = Checkpoint.open(sys.argv[1])
result = dataclasses.replace(source, documents=Failing(source.documents)) if where == "shutdown" else source
threading.Thread(target=stop).start()
if where == "start":
    threading.Event = Late
target = Path(sys.argv[2])
target.mkdir()
try:
    write_checkpoint(source, result, target, progress=progress)
except KeyboardInterrupt as error:
    writers = [thread.name for thread in threading.enumerate() if "ThreadPool" in thread.name]
    print(len(writers), bool(ended), type(error.__context__).__name__)
"""


@pytest.mark.parametrize(("where", "before"), [("shutdown", "OSError"), ("start", "NoneType")])
def test_a_signal_acts_when_the_writers_have_ended(where, before, tmp_path):
    build("LlamaForCausalLM", tmp_path / "model", max_shard_size="60KB")
    line = [sys.executable, "-c", PROGRAM, tmp_path / "model", tmp_path / "out", where]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout.split() == ["0", "True", before], done.stderr
