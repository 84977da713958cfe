"""The page of what was tried: rows come from notes, and those that were not tried again stay."""

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "reliability_page.py"


def test_a_row_is_replaced_by_its_note_and_the_others_stay(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("reliability_page", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "NOTES", tmp_path)
    script.note("a full disk", 1200, 1, 60, "5: 1,200")
    script.note("kills", 18, 0, 40, "-9: 18")
    before = script.table()
    assert before.splitlines()[2:] == [
        "| a full disk | 1,200 | 1 | 60 | 5: 1,200 |",
        "| kills | 18 | 0 | 40 | -9: 18 |",
        "| **all** | 1,218 | 1 | 100 | |",
    ]
    for note in tmp_path.iterdir():
        note.unlink()
    assert script.table(before) == before
    script.note("kills", 20, 2, 50, json.dumps({"-9": 20}))
    assert script.table(before).splitlines()[2:] == [
        "| a full disk | 1,200 | 1 | 60 | 5: 1,200 |",
        '| kills | 20 | 2 | 50 | {"-9": 20} |',
        "| **all** | 1,220 | 3 | 110 | |",
    ]
