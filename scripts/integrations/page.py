"""docs/integration.md, made of docs/integration.json: what came of each tool, by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = """# In the tools that come next

`scripts/integration [TOOL...]` writes bases and adapters from the demo model, puts each tool into an environment of its own and lets it
load, train, convert or serve them; this page is what it found. A tool that does not install or start has the reason in its place.

What is compared: logits, losses and embeddings with those of graftkit's own environment, tokens of greedy decoding and token ids one by
one. **equal** means bit for bit; **within noise** at most twice as far apart as graftkit's own float32 run is from the same run in
float64, and the rounding of the values themselves.
"""


def load(path: Path) -> dict[str, Any]:
    """What earlier runs found, by tool."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def markdown(found: dict[str, Any], names: tuple[str, ...] = ()) -> str:
    """The page, with the tools in the order of ``found``; those of ``names`` that it lacks have not been run."""
    return "\n".join([HEAD, *_overview(found, names), "", *_details(found)]).rstrip() + "\n"


def _overview(found: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    yield "| tool | versions | result |"
    yield "|---|---|---|"
    for name, tool in found.items():
        yield f"| {name} | {_versions(tool)} | {_cell(verdict(tool))} |"
    yield from (f"| {name} | - | not run yet |" for name in names if name not in found)


def _details(found: dict[str, Any]) -> Iterator[str]:
    for name, tool in found.items():
        if tool["rows"]:
            yield f"## {name}\n\n| compared | result | figure |\n|---|---|---|"
            yield from (f"| {_cell(row['what'])} | {row['outcome']} | {_cell(row['figure'])} |" for row in tool["rows"])
            yield ""


def verdict(tool: dict[str, Any]) -> str:
    """One line of a tool: skipped with the reason, what went wrong, or how many comparisons held."""
    if tool["skipped"]:
        return f"skipped: {tool['skipped']}"
    wrong = [row["what"] for row in tool["rows"] if row["outcome"] in {"differs", "failed"}]
    not_run = [row["figure"] for row in tool["rows"] if row["outcome"] == "not run"]
    held = sum(row["outcome"] in {"equal", "within noise"} for row in tool["rows"])
    if wrong:
        return f"wrong: {'; '.join(wrong)}"
    return f"{held} of {held} held" if held else f"not run: {'; '.join(not_run)}"


def _versions(tool: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in tool["versions"].items()) or "-"


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("<", "&lt;")
