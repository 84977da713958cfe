"""Write what was tried against the command into docs/reliability.md, between its two marks.

    scripts/reliability_page.py

scripts/fuzz and the tests behind `scripts/test --all` note what they tried in out/reliability, one file each.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTES, PAGE = ROOT / "out" / "reliability", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: scripts/reliability_page.py -->\n", "<!-- end -->\n"


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


def table() -> str:
    """The rows that were noted, and their sum."""
    rows = sorted((json.loads(path.read_text()) for path in NOTES.glob("*.json")), key=lambda row: str(row["name"]))
    lines = ["| what | tried | not as it should be | seconds | exit code: how often |", "|---|---:|---:|---:|---|"]
    lines += [f"| {r['name']} | {r['tried']:,} | {r['faults']:,} | {r['seconds']:,} | {r['ended']} |" for r in rows]
    sums = [sum(row[key] for row in rows) for key in ("tried", "faults", "seconds")]
    return "\n".join([*lines, "| **all** | " + " | ".join(f"{value:,}" for value in sums) + " | |"]) + "\n"


def write_page() -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    write_page()
