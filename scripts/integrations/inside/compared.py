"""What a tool's outputs are compared with, and the rows that come of it; runs in the environment of a tool."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Rows:
    """The rows of one tool: what was compared, what came of it and the figure."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def add(self, what: str, outcome: str, figure: str = "") -> None:
        """Add a row as it stands in the table."""
        self.rows.append({"what": what, "outcome": outcome, "figure": figure})

    def equal(self, what: str, found: Any, expected: Any) -> None:
        """Two arrays or lists that have to be the same, bit by bit."""
        one, other = np.asarray(found), np.asarray(expected)
        same = one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
        self.add(what, "equal" if same else "differs", f"{one.size:,} values" if same else difference(one, other))

    def near(self, what: str, found: Any, reference: Any, exact: Any) -> None:
        """Outputs beside graftkit's environment's in float32 and in float64.

        Two runs that are each as far from the exact values as the reference differ by at most twice that distance, and by what
        rounding them to float32 adds.
        """
        one, other, true = np.asarray(found), np.asarray(reference), np.asarray(exact)
        if one.shape == other.shape and one.tobytes() == other.tobytes():
            self.add(what, "equal", f"{one.size:,} values")
            return
        if one.shape != other.shape:
            self.add(what, "differs", difference(one, other))
            return
        apart = float(np.abs(one.astype(np.float64) - other).max())
        rounding = float(np.finfo(np.float32).eps) / 2 * float(np.abs(true).max())
        noise = 2 * (float(np.abs(other - true).max()) + rounding)
        self.add(what, "within noise" if apart <= noise else "differs", f"{apart:.2g} apart, noise {noise:.2g}")

    def true(self, what: str, held: bool, figure: str) -> None:
        """A condition that has to hold."""
        self.add(what, "equal" if held else "differs", figure)


def difference(one: np.ndarray, other: np.ndarray) -> str:
    """How two arrays differ."""
    if one.shape != other.shape:
        return f"shapes {one.shape} and {other.shape}"
    if not np.issubdtype(one.dtype, np.number) or not np.issubdtype(other.dtype, np.number):
        return "other values"
    return f"{float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()):.2g} apart"


def references(material: Path) -> dict[str, np.ndarray]:
    """What graftkit's own environment computed of the material."""
    with np.load(material / "references.npz") as file:
        return dict(file)


def main(needed: Sequence[str], run: Callable[[Path, Path, Rows], None]) -> None:
    """Run the checks of one tool on argv's material and empty folder, and write argv's file; a tool that does not start is skipped."""
    material, scratch, out = map(Path, sys.argv[1:4])
    rows, skipped = Rows(), ""
    try:
        for name in needed:
            importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - whatever a tool raises is why it does not start
        skipped = f"does not start: {in_a_line(error)}"
    else:
        try:
            run(material, scratch, rows)
        except Exception as error:  # noqa: BLE001 - and why a check did not end
            traceback.print_exc()
            rows.add("ran to the end", "failed", in_a_line(error))
    out.write_text(json.dumps({"rows": rows.rows, "skipped": skipped}), encoding="utf-8")


def in_a_line(error: Exception) -> str:
    """An exception in one short line."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= 160 else f"{text[:159]}…"
