"""What every sweep over many classes rests on: workers that may die, and a file of what was found before."""

import importlib
import os
import threading
import time
from dataclasses import dataclass

import pytest
from support.command import ROOT


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@dataclass
class Found:
    name: str
    verdict: str


def judge(name, place):
    """Ends the worker, at once or behind its answer."""
    place.joinpath("here").touch()
    if name == "dies":
        os._exit(3)
    if name == "dies behind its answer":
        threading.Timer(0.2, os._exit, (3,)).start()
    return f"{name} is well"


def test_a_worker_that_dies_costs_its_own_name_and_no_other():
    sweep = importlib.import_module("sweep_pool").sweep
    found = {}
    for name, said, why, _ in sweep(["dies behind its answer", "dies", "last"], 1, 300, judge):
        found[name] = said or why
        if name == "dies behind its answer":
            time.sleep(1)  # the worker is gone when it gets its next name
    assert found == {
        "dies behind its answer": "dies behind its answer is well",
        "dies": "the process died with 3",
        "last": "last is well",
    }


def test_a_sweep_that_was_killed_while_it_wrote_goes_on_behind_the_last_whole_line(tmp_path):
    done = importlib.import_module("sweep_done")
    place = tmp_path / "done.jsonl"
    assert done.read_done(place, Found) == []
    done.note_done(place, Found("one", "wrong"))
    done.note_done(place, Found("two", "works"))
    with place.open("a", encoding="utf-8") as file:
        file.write('{"name": "thr')
    assert done.read_done(place, Found) == [Found("one", "wrong"), Found("two", "works")]
    done.note_done(place, Found("one", "works"))
    assert done.read_done(place, Found) == [Found("one", "works"), Found("two", "works")]
