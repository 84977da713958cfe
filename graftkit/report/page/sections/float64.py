"""The lens: how far source and result are apart in true float64, block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from graftkit.errors import plural
from graftkit.report.page.markup import joined, tag
from graftkit.report.page.numbers import number
from graftkit.report.page.plots import AFTER, Series, by_layer, cells, figure
from graftkit.report.page.section import Section, table

#: A module inside the blocks of a stack: the stack, and the index of the block.
_BLOCK = re.compile(r"(.*?)\.(\d+)(?:\.|$)")


def float64(report: Mapping[str, Any]) -> Section | None:
    """The largest relative difference in each block, beside the floor of the arithmetic and the threshold above it."""
    found = (report.get("checks") or {}).get("lens")
    if not found:
        return None
    stacks = _stacks(found["modules"])
    plots = [_stack(name if len(stacks) > 1 else "", blocks, found["floor"]) for name, blocks in stacks.items()]
    outputs = [(name, number(_value(gap))) for name, gap in found["outputs"].items() if "hidden_states" not in name]
    listed = table([("output", "m"), ("max |Δ| over its RMS", "n")], outputs) if outputs else None
    return Section("float64", "True float64", _lead(found), joined(tag("div", *plots, class_="plots"), listed))


def _value(gap: Any) -> float:
    """A gap; what could not be compared is infinite, and stands in the JSON as a word."""
    return float(gap)


def _stacks(modules: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    stacks: dict[str, dict[int, float]] = {}
    for name, gap in modules.items():
        match = _BLOCK.match(name)
        if match:
            blocks, index = stacks.setdefault(match[1], {}), int(match[2])
            blocks[index] = max(blocks.get(index, 0.0), _value(gap))
    return {name: dict(sorted(blocks.items())) for name, blocks in stacks.items()}


def _stack(name: str, blocks: Mapping[int, float], floor: Mapping[str, Any]) -> Any:
    title = joined("Blocks", tag("small", name) if name else None)
    if all(gap == 0 for gap in blocks.values()):
        squares = [("equal", str(index), f"block {index}: equal to the last bit of float64") for index in blocks]
        return figure(title, cells(squares), "Each number is a block; green ones are equal to the last bit of float64.")
    values = [blocks.get(index) for index in range(max(blocks) + 1)]
    finite = [value if value is not None and math.isfinite(value) else None for value in values]
    limits = [
        (value, label) for value, label in ((floor["threshold"], "threshold"), (floor["height"], "floor")) if value
    ]
    picture = by_layer([Series("max |Δ| over RMS", AFTER, finite)], log=True, limits=limits)
    return figure(title, picture, "Largest difference inside each block, relative to the RMS of what is compared.")


def _lead(found: Mapping[str, Any]) -> str:
    floor, largest = found["floor"], _value(found["largest"])
    scale = (
        f"The arithmetic's own floor is {number(floor['height'])}; differences count from {number(floor['threshold'])}."
    )
    first = found.get("first")
    if first:
        where = first["module"] or "the model itself"
        tensors = f" Its own tensors differ: {', '.join(first['tensors'])}." if first["tensors"] else ""
        what = first["unlike"] or f"differs by {number(_value(first['gap']))} of its RMS"
        return f"The first difference is at {where}, which {what}.{tensors} {scale}"
    if largest == 0:
        return f"All {plural(len(found['modules']), 'module')} give the same float64 numbers to the last bit. {scale}"
    return f"The outputs differ by at most {number(largest)} of their RMS. {scale}"
