"""Errors of the system, signals, full disks, races and files that change: the output, the exit code, one line, and no litter."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from support.command import real
from support.recipes import recipe
from support.strace import needs_strace, run
from support.tried import tried

READING = "openat,read,pread64,preadv,mmap,lseek,copy_file_range,getdents64,statx"


@pytest.fixture
def place(demo, tmp_path):
    """A copy of the demo model, and a recipe for each of two tokens, with the same output."""
    shutil.copytree(demo, tmp_path / "model")
    for token in ("a", "b"):
        operation = {"op": "extend_vocab", "special_tokens": [f"<|{token}|>"]}
        (tmp_path / f"{token}.yaml").write_text(json.dumps(recipe(tmp_path / "model", tmp_path / "out", operation)))
    return tmp_path


def command(place, *flags, adds="a", outputs=False):
    verify = [] if outputs else ["verify={outputs: false}"]
    return [sys.executable, "-m", "graftkit", "apply", str(place / f"{adds}.yaml"), *verify, "-q", *flags]


def start(line):
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def token_of(out):
    """Which of the two outputs stands there, whole; None for none."""
    if not out.exists():
        return None
    assert (out / "graft_report.json").is_file()
    return re.search(r"<\|([ab])\|>", (out / "tokenizer.json").read_text())[1]


def no_litter(place):
    assert {item.name for item in place.iterdir()} <= {"model", "a.yaml", "b.yaml", "out", "log"}


def through(place, call, error, at):
    """An apply in which the ``at``-th such call on a file of the model fails."""
    paths = [part for path in (place / "model", *(place / "model").iterdir()) for part in ("-P", path)]
    inject = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={at}")
    return run(command(place, outputs=True), *paths, "-o", "/dev/null", *inject)


def check_read_fault(place, done):
    assert done.returncode in (0, 5), done.stderr
    assert len(done.stderr.splitlines()) == (done.returncode != 0), done.stderr
    assert token_of(place / "out") == ("a" if done.returncode == 0 else None)
    no_litter(place)


@needs_strace
@pytest.mark.parametrize(
    ("call", "error", "at"),
    [("read", "EIO", 6), ("openat", "EMFILE", 9), pytest.param("mmap", "ENOMEM", 1, marks=pytest.mark.slow)],
)
def test_a_source_that_cannot_be_read_is_the_system_s_fault(place, call, error, at):
    done = through(place, call, error, at)
    assert done.returncode == 5, done.stderr
    check_read_fault(place, done)


@needs_strace
@pytest.mark.slow
def test_reading_fails_anywhere(place):
    """Also while transformers and the libraries in Rust read."""
    paths = [part for path in (place / "model", *(place / "model").iterdir()) for part in ("-P", path)]
    run(command(place, outputs=True), *paths, "-o", place / "log", "-e", f"trace={READING}")
    shutil.rmtree(place / "out")
    most = Counter(re.findall(r"^\d+ +(\w+)\(", (place / "log").read_text(), re.MULTILINE))
    with tried("reading fails: EIO, EMFILE, ENOMEM") as codes:
        for call, count in most.items():
            for error in ("EIO", "ENOMEM", *(("EMFILE",) if call == "openat" else ())):
                for at in random.Random(call + error).sample(range(1, count + 1), min(count, 3)):
                    done = through(place, call, error, at)
                    check_read_fault(place, done)
                    codes[done.returncode] += 1
                    shutil.rmtree(place / "out", ignore_errors=True)


@pytest.mark.slow
def test_signals_at_random_points(place):
    dice = random.Random(0)
    subprocess.run(command(place, adds="b"), check=True)
    begun = time.perf_counter()
    subprocess.run(command(place, "--overwrite", adds="b"), check=True)
    whole = time.perf_counter() - begun
    with tried("SIGINT, SIGTERM, SIGHUP at random points") as codes:
        for _ in range(100):
            number = dice.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
            process = start(command(place, "--overwrite"))
            time.sleep(dice.uniform(0.3, 1.1) * whole)
            process.send_signal(number)
            _, said = process.communicate()
            code = process.returncode
            assert code in (0, 7, 128 + number, -number), said  # the last while Python itself was starting
            assert len(said.splitlines()) <= 1, said
            assert ("nothing was written" in said) == (code == 128 + number), said
            assert token_of(place / "out") == ("a" if code in (0, 7) else "b")
            no_litter(place)
            codes[code] += 1
            if code in (0, 7):
                subprocess.run(command(place, "--overwrite", adds="b"), check=True)


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a small file system"
)
def test_a_file_system_that_becomes_full(place):
    """As large as the output and less, in steps; with an old output to replace, and without."""
    small = place / "out-disk"
    small.mkdir()
    with tried("a full file system") as codes:
        for size in range(1, 50, 4):
            made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", small], check=False)
            if made.returncode:
                pytest.skip("nothing can be mounted here")
            try:
                done = subprocess.run(
                    [*command(place), "--output", str(small / "out")], capture_output=True, text=True, check=False
                )
                assert done.returncode in (0, 5), done.stderr
                assert len(done.stderr.splitlines()) == (done.returncode != 0)
                assert token_of(small / "out") == ("a" if done.returncode == 0 else None)
                assert {item.name for item in small.iterdir()} <= {"out"}
                codes[done.returncode] += 1
            finally:
                subprocess.run(["umount", small], check=True)
    assert set(codes) == {0, 5}


@pytest.mark.slow
def test_two_recipes_for_one_output(place):
    with tried("two recipes, one output, at once") as codes:
        for overwrite in ([], ["--overwrite"]) * 4:
            both = {token: start(command(place, *overwrite, adds=token)) for token in ("a", "b")}
            said = {token: process.communicate()[1] for token, process in both.items()}
            ended = {token: process.returncode for token, process in both.items()}
            assert 0 in ended.values(), said
            assert set(ended.values()) <= {0, 2, 5, 6}, said
            assert ended[token_of(place / "out")] == 0
            no_litter(place)
            codes.update(ended.values())
            if overwrite:
                shutil.rmtree(place / "out")


@pytest.mark.slow
def test_a_verdict_on_an_output_that_is_exchanged_is_of_one_of_them(place):
    """While verify reads, apply exchanges: the verdict is of one output, or the change is told; never of a mixture."""
    subprocess.run(command(place), check=True)
    stop = threading.Event()

    def exchange():
        while not stop.is_set():
            for token in ("b", "a"):
                subprocess.run(command(place, "--overwrite", adds=token), check=False)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        with tried("verify while apply exchanges its output") as codes:
            for _ in range(16):
                done = real("verify", place / "model", place / "out", "--no-outputs")
                told = "changed while it was read" in done.stderr
                assert done.returncode == (5 if told else 0), (done.stdout, done.stderr)
                codes[done.returncode] += 1
    finally:
        stop.set()
        thread.join()


def test_a_source_that_changes_while_it_is_read_is_noticed(place):
    process = start(command(place))
    while not (place / ".out.graftkit-staging" / "checkpoint" / "model.safetensors").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    path = place / "model" / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    assert process.communicate()[1].startswith(f"graftkit: {place / 'model'}")
    assert process.returncode == 5
    assert token_of(place / "out") is None
    no_litter(place)
