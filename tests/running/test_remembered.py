"""One source for many comparisons: it runs once, and each comparison finds what it finds alone."""

import contextlib
import shutil
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from graftkit.compare import verify
from graftkit.running.remembered import recall, remembered_source
from graftkit.selftest.copies import edit_tensor


@pytest.fixture
def loads(monkeypatch):
    """The names of the folders that models are loaded from."""
    found, plain = [], LlamaForCausalLM.from_pretrained.__func__

    def load(cls, folder, *args, **options):
        found.append(Path(folder).name)
        return plain(cls, folder, *args, **options)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(load))
    return found


def copies_of(source, room):
    """An equal copy, and one with another value in a weight."""
    equal, other = (shutil.copytree(source, room / name) for name in ("equal", "other"))
    edit_tensor(other, "model.norm.weight", lambda values: values[0].add_(1))
    return equal, other


@pytest.mark.parametrize("remembering", [contextlib.nullcontext, remembered_source])
def test_the_source_runs_once_and_the_verdicts_are_the_same(remembering, loads, sources, tmp_path):
    source = sources("llama")
    equal, other = copies_of(source, tmp_path)
    loads.clear()
    with remembering():
        found = [verify(source, copy) for copy in (equal, other, equal)]
    assert [bool(each.failures) for each in found] == [False, True, False]
    assert [bool(each.found.get("outputs")) for each in found] == [False, True, False]
    assert found[0].outputs.comparisons == found[2].outputs.comparisons
    assert loads.count(source.name) == (1 if remembering is remembered_source else 3)
    assert len(loads) - loads.count(source.name) == 3


def test_what_asks_for_something_else_is_made_anew_and_nothing_stays():
    made = []

    def make():
        made.append(len(made))
        return made[-1]

    with remembered_source():
        assert [recall("one", make), recall("one", make), recall("other", make), recall("one", make)] == [0, 0, 1, 2]
    assert [recall("one", make), recall("one", make)] == [3, 4]
