"""Write what was tried against the command into docs/reliability.md, between its two marks.

    scripts/reliability_page.py

scripts/fuzz and the tests behind `scripts/test --all` note what they tried in out/reliability, one file each. A row of the page that was not
tried again stays.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTES, PAGE = ROOT / "out" / "reliability", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: scripts/reliability_page.py -->\n", "<!-- end -->\n"

#: The columns of numbers.
NUMBERS = ("tried", "faults", "seconds")


def note(name: str, tried: int, faults: int, seconds: float, ended: str) -> None:
    """Keep what came of one thing that was tried; ``ended`` says how often with which exit code."""
    NOTES.mkdir(parents=True, exist_ok=True)
    row = {"name": name, "tried": tried, "faults": faults, "seconds": round(seconds), "ended": ended}
    (NOTES / f"{name.replace(' ', '-').replace('/', '-')}.json").write_text(json.dumps(row))


def note_fuzz(tried: Counter[str], codes: Counter[tuple[str, int]], faults: Counter[str], seconds: float) -> None:
    """Keep what came of fuzzing: a row for each kind of input, the seconds in proportion to its cases."""
    for kind, count in tried.items():
        ended = {code: number for (other, code), number in sorted(codes.items()) if other == kind}
        note(f"fuzz: {kind}", count, faults[kind], seconds * count / tried.total(), as_text(ended))


def as_text(ended: dict[int, int]) -> str:
    """How often a command ended with each exit code."""
    return ", ".join(f"{code}: {count:,}" for code, count in sorted(ended.items()))


def table(before: str = "") -> str:
    """The rows that were noted, those of the table as it was ``before`` that were not, and their sum."""
    rows = {
        row["name"]: row for row in (*rows_of(before), *(json.loads(path.read_text()) for path in NOTES.glob("*.json")))
    }
    lines = ["| what | tried | not as it should be | seconds | exit code: how often |", "|---|---:|---:|---:|---|"]
    lines += [
        f"| {name} | {r['tried']:,} | {r['faults']:,} | {r['seconds']:,} | {r['ended']} |"
        for name, r in sorted(rows.items())
    ]
    sums = [sum(row[key] for row in rows.values()) for key in NUMBERS]
    return "\n".join([*lines, "| **all** | " + " | ".join(f"{value:,}" for value in sums) + " | |"]) + "\n"


def rows_of(text: str) -> list[dict[str, Any]]:
    """The rows of a table as :func:`table` writes it, without heading and sum."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line] for line in lines[1:-1]]
    return [
        {
            "name": name,
            "ended": ended,
            **{key: int(number.replace(",", "")) for key, number in zip(NUMBERS, numbers, strict=True)},
        }
        for name, *numbers, ended in cells
    ]


def write_page() -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    old, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table(old) + END + after, encoding="utf-8")


if __name__ == "__main__":
    write_page()
