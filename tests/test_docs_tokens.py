"""The script behind docs/tokens.md writes what it measures between its marks, and leaves the rest of the page alone."""

import re

import pytest
from support.command import ROOT
from support.sweeps import load_script

learned_tokens = load_script("learned_tokens")


@pytest.fixture
def page(tmp_path, monkeypatch):
    page = tmp_path / "tokens.md"
    page.write_text((ROOT / "docs/tokens.md").read_text())
    monkeypatch.setattr(learned_tokens, "PAGE", page)
    monkeypatch.setattr(learned_tokens, "bases", lambda: [("demo", ROOT / "recipes/models/demo-lm")])
    return page


def test_the_table_is_measured_and_stands_between_the_marks(page):
    begin, end = learned_tokens.MARKS
    old = page.read_text()
    learned_tokens.write((20, 10**6))
    new = page.read_text()
    assert (new.partition(begin)[0], new.partition(end)[2]) == (old.partition(begin)[0], old.partition(end)[2])
    lines = new.partition(begin)[2].partition(end)[0].split("\n")
    first, second = (line for line in lines if line.startswith(("| 20 ", "| 1,000,000 ")))
    before, after = (float(cell) for cell in first.split("|")[2:4])
    assert 0 < after < before < 1
    assert re.search(
        r"\| 0 of [1-9]\d* \|$", first
    )  # the paragraphs are those of the running Python's standard library
    assert "pieces with min_frequency: 2, not 1,000,000" in second
