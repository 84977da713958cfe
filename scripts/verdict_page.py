"""Make docs/verdict.md of what scripts/test --machines, --newest and --lowest noted in out/verdict.

Rows that the page has from elsewhere, of another processor or setting, stay; a row is run again where all of these are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
Row = dict[str, str]
RUNS, PAGE = ROOT / "out" / "verdict", ROOT / "docs" / "verdict.md"

HEAD = """# Where the verdict was asked for

A verdict is worth something where it is the same on every machine and with every version. `scripts/test --machines` runs the
numerical tests, and the self test on the model that ships, under one setting of the processor's kernels after another;
`scripts/test --newest` and `scripts/test --lowest` run the whole suite on the newest versions that pip gives and on the lowest that
pyproject.toml admits. Each notes what came of it, and `scripts/verdict_page.py` makes this page.

A fault is caught where every check that has to see it did. A clean copy that is flagged is a false alarm.
"""

PARTS = {
    "machines": "## Settings of the machine\n\nThe tests marked `numerical`: all that compute.\n",
    "newest": "## The newest versions\n\nThe whole suite.\n",
    "lowest": "## The lowest versions\n\nThe whole suite. torch is the pinned release where its row does not say otherwise.\n",
}


#: The columns that say what was run, as far as the page of a kind has them.
KEY = ("setting", "Python", "processor")


def runs() -> list[dict[str, Any]]:
    """What was noted, in the order in which it was run."""
    paths = sorted(RUNS.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def markdown(noted: list[dict[str, Any]], before: str = "") -> str:
    """The page: a table for each kind of run, the rows of the page as it was ``before`` in it, and below it what failed."""
    lines = [HEAD]
    for kind, head in PARTS.items():
        chosen = [run for run in noted if run["kind"] == kind]
        rows = merged(
            rows_below(before, head.splitlines()[0]), [cells(run, named=kind == "machines") for run in chosen]
        )
        if rows:
            lines += [head, *table(rows), ""]
            lines += [*failures(chosen), ""] if any(run["failures"] for run in chosen) else []
    return "\n".join(lines).rstrip() + "\n"


def cells(run: dict[str, Any], *, named: bool) -> Row:
    """The cells of one run by column; ``named`` puts the setting first."""
    return {
        **({"setting": f"`{run['setting']}`"} if named else {}),
        "Python": run["python"],
        **run["libraries"],
        "processor": run["processor"],
        "passed": str(run["passed"]),
        "failed": str(run["failed"]),
        "skipped": str(run["skipped"]),
        "faults caught": f"{run['caught']} of {run['faults']}",
        "false alarms": f"{run['flagged']} of {run['clean']}",
    }


def rows_below(page: str, head: str) -> list[Row]:
    """The rows of the table below a heading of a page, empty where there is none."""
    section = page.partition(f"{head}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Old and new rows in the order of what was run; of the same run, the new one."""
    rows = {tuple(row.get(name, "") for name in KEY): row for row in (*old, *new)}
    return [rows[key] for key in sorted(rows)]


def table(rows: list[Row]) -> Iterator[str]:
    """A table of rows that have the same columns."""
    yield "| " + " | ".join(rows[0]) + " |"
    yield "|" + "---|" * len(rows[0])
    for row in rows:
        yield "| " + " | ".join(row[name] for name in rows[0]) + " |"


def failures(chosen: list[dict[str, Any]]) -> Iterator[str]:
    """What failed, with the settings under which it did."""
    under: dict[str, list[str]] = {}
    for run in chosen:
        for name in run["failures"]:
            under.setdefault(name, []).append(f"{run['setting']}, Python {run['python']}")
    for name, settings in under.items():
        yield f"- `{name}` failed: {'; '.join(settings)}"


def main() -> None:
    """Write the page."""
    noted = runs()
    if not noted:
        raise SystemExit("out/verdict holds no run; scripts/test --machines, --newest and --lowest make them")
    PAGE.write_text(markdown(noted, PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""), encoding="utf-8")


if __name__ == "__main__":
    main()
