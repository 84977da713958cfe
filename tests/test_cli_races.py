"""Signals at random points, two runs at once, and sources that change: the output, the exit code, one line, and no litter."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.recipes import recipe
from support.scenes import state_of
from support.strace import mind_interrupts
from support.tried import tried

OUTPUT = "out"


@pytest.fixture
def place(demo, tmp_path):
    """A copy of the demo model, and a recipe for each of two tokens, with the same output."""
    shutil.copytree(demo, tmp_path / "model")
    for token in ("a", "b"):
        operation = {"op": "extend_vocab", "special_tokens": [f"<|{token}|>"]}
        (tmp_path / f"{token}.yaml").write_text(json.dumps(recipe(tmp_path / "model", tmp_path / OUTPUT, operation)))
    return tmp_path


def arguments(place, *flags, adds="a", outputs=False):
    verify = [] if outputs else ["verify={outputs: false}"]
    return ["apply", str(place / f"{adds}.yaml"), *verify, "-q", *flags]


def command(place, *flags, **options):
    return [sys.executable, "-m", "graftkit", *arguments(place, *flags, **options)]


def start(line):
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, preexec_fn=mind_interrupts)  # noqa: PLW1509 - no threads here


def token_of(out):
    """Which of the two outputs stands there, whole; None for none."""
    if not out.exists():
        return None
    assert state_of(out)[1:] == (True, True)
    return re.search(r"<\|([ab])\|>", (out / "tokenizer.json").read_text())[1]


def learn(place, warm):
    """Let the parent of commands learn how to write output b, and write it; return the seconds that this takes."""
    other = place / "learned"
    shutil.copytree(place / "model", other / "model")
    (other / "b.yaml").write_text((place / "b.yaml").read_text().replace(str(place), str(other)))
    warm.learn(*arguments(other, adds="b"))
    warm.learn("verify", other / "model", other / OUTPUT, "--no-outputs")
    shutil.rmtree(other)
    begun = time.perf_counter()
    done = warm.run(*arguments(place, adds="b"))
    assert done.code == 0, done.said
    return time.perf_counter() - begun


def no_litter(place):
    assert {item.name for item in place.iterdir()} <= {"model", "a.yaml", "b.yaml", OUTPUT}


@pytest.mark.slow
def test_signals_at_random_points(place, warm):
    dice = random.Random(0)
    whole = learn(place, warm)
    with tried("SIGINT, SIGTERM, SIGHUP at random points") as codes:
        for _ in range(100):
            number = dice.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
            running = warm.start(*arguments(place, "--overwrite"))
            time.sleep(dice.uniform(0, 1.1) * whole)
            os.kill(running.pid, number)
            running.wait()
            codes[check_interrupted(place, running.code, running.said, number)] += 1
            if running.code in (0, 7):
                assert warm.run(*arguments(place, "--overwrite", adds="b")).code == 0


def check_interrupted(place, code, said, number):
    assert code in (0, 7, 128 + number, -number), said  # the last before the command has begun to listen
    assert len(said.splitlines()) <= 1, said
    assert ("nothing was written" in said) == (code == 128 + number and bool(said)), said
    assert token_of(place / OUTPUT) == ("a" if code in (0, 7) else "b")
    no_litter(place)
    return code


@pytest.mark.slow
def test_signals_while_the_command_is_still_importing(place, warm):
    dice = random.Random(0)
    learn(place, warm)
    look = [sys.executable, "-m", "graftkit", "inspect", str(place / "model")]
    begun = time.perf_counter()
    subprocess.run(look, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - begun
    with tried("SIGINT, SIGTERM, SIGHUP while libraries are imported") as codes:
        for _ in range(12):
            number = dice.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
            process = start(command(place, "--overwrite"))
            time.sleep(dice.uniform(0.05, 1) * whole)
            process.send_signal(number)
            said = process.communicate()[1]
            codes[check_interrupted(place, process.returncode, said, number)] += 1
            if process.returncode in (0, 7):
                assert warm.run(*arguments(place, "--overwrite", adds="b")).code == 0


@pytest.mark.slow
def test_two_recipes_for_one_output(place, warm):
    learn(place, warm)
    shutil.rmtree(place / OUTPUT)
    with tried("two recipes, one output, at once") as codes:
        for overwrite in ([], ["--overwrite"]) * 25:
            both = {token: warm.start(*arguments(place, *overwrite, adds=token)) for token in ("a", "b")}
            ended = {token: running.wait() for token, running in both.items()}
            said = {token: running.said for token, running in both.items()}
            assert 0 in ended.values(), said
            assert set(ended.values()) <= {0, 2, 5, 6}, said
            assert all(len(said[token].splitlines()) == (code != 0) for token, code in ended.items()), said
            assert ended[token_of(place / OUTPUT)] == 0
            no_litter(place)
            codes.update(ended.values())
            if overwrite:
                shutil.rmtree(place / OUTPUT)


@pytest.mark.slow
def test_a_verdict_on_an_output_that_is_exchanged_is_of_one_of_them(place, warm):
    """While verify reads, apply exchanges: the verdict is of one output, or the change is told; never of a mixture."""
    dice = random.Random(0)
    whole = learn(place, warm)
    with tried("verify while apply exchanges its output") as codes:
        for turn in range(50):
            applying = warm.start(*arguments(place, "--overwrite", adds="ab"[turn % 2]))
            time.sleep(dice.uniform(0, 1) * whole)
            verifying = warm.start("verify", place / "model", place / OUTPUT, "--no-outputs")
            assert applying.wait() == 0, applying.said
            told = verifying.wait() == 5 and "changed while it was read" in verifying.said
            assert verifying.code == (5 if told else 0), verifying.said
            codes[verifying.code] += 1


def test_a_source_that_changes_while_it_is_read_is_noticed(place, warm):
    learn(place, warm)
    shutil.rmtree(place / OUTPUT)
    running = warm.start(*arguments(place))
    while not (place / ".out.graftkit-staging" / "checkpoint" / "model.safetensors").exists():
        assert running.is_alive, running.said
        time.sleep(0.001)
    path = place / "model" / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    assert running.wait() == 5
    assert running.said.startswith(f"graftkit: {place / 'model'}")
    assert len(running.said.splitlines()) == 1
    assert token_of(place / OUTPUT) is None
    no_litter(place)
