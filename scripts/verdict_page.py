"""Make docs/verdict.md of what scripts/test --machines, --newest and --lowest noted in out/verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
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


def runs() -> list[dict[str, Any]]:
    """What was noted, in the order in which it was run."""
    paths = sorted(RUNS.glob("*.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def markdown(noted: list[dict[str, Any]]) -> str:
    """The page: a table for each kind of run that there is, and below it what failed."""
    lines = [HEAD]
    for kind, head in PARTS.items():
        chosen = [run for run in noted if run["kind"] == kind]
        if chosen:
            lines += [head, *table(chosen, named=kind == "machines"), ""]
            lines += [*failures(chosen), ""] if any(run["failures"] for run in chosen) else []
    return "\n".join(lines).rstrip() + "\n"


def table(chosen: list[dict[str, Any]], *, named: bool) -> Iterator[str]:
    """One row for each run; ``named`` puts the setting first."""
    libraries = list(chosen[0]["libraries"])
    first = ["setting"] if named else []
    columns = [
        *first,
        "Python",
        *libraries,
        "processor",
        "passed",
        "failed",
        "skipped",
        "faults caught",
        "false alarms",
    ]
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for run in chosen:
        versions = [run["libraries"][name] for name in libraries]
        counts = [
            run["passed"],
            run["failed"],
            run["skipped"],
            f"{run['caught']} of {run['faults']}",
            f"{run['flagged']} of {run['clean']}",
        ]
        cells = [*([f"`{run['setting']}`"] if named else []), run["python"], *versions, run["processor"], *counts]
        yield "| " + " | ".join(map(str, cells)) + " |"


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
    PAGE.write_text(markdown(noted), encoding="utf-8")


if __name__ == "__main__":
    main()
