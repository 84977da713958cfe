"""How far each hidden state is from the source's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.report.page.markup import joined, tag
from graftkit.report.page.numbers import number, short_count
from graftkit.report.page.plots import AFTER, Series, by_layer, cells, figure
from graftkit.report.page.section import Section, table

_HIDDEN = re.compile(r"(?:step \d+ )?(?:(\w+)_)?hidden_states\.(\d+)")


def layers(report: Mapping[str, Any]) -> Section | None:
    """Cells where everything is bitwise equal; else a line over the layers, one for each stack."""
    outputs = report.get("outputs") or {}
    stacks = _stacks(outputs.get("comparisons") or ())
    if not stacks:
        return None
    parts = [_stack(name, found) for name, found in stacks.items()]
    others = [item for item in outputs["comparisons"] if not _HIDDEN.fullmatch(item["name"])]
    return Section(
        "layers", "Difference by layer", _lead(stacks), joined(tag("div", *parts, class_="plots"), _others(others))
    )


def _stacks(comparisons: Any) -> dict[str, dict[int, tuple[float, bool, int]]]:
    """Stack (empty where there is only one) -> layer -> largest difference, whether bitwise, and values compared."""
    stacks: dict[str, dict[int, tuple[float, bool, int]]] = {}
    for item in comparisons:
        match = _HIDDEN.fullmatch(item["name"])
        if match is None:
            continue
        layer, stack = int(match[2]), stacks.setdefault(match[1] or "", {})
        largest, bitwise, places = stack.get(layer, (0.0, True, 0))
        stack[layer] = (max(largest, float(item["largest"])), bitwise and item["bitwise"], places + item["places"])
    return {name: dict(sorted(found.items())) for name, found in stacks.items()}


def _stack(name: str, found: Mapping[int, tuple[float, bool, int]]) -> Any:
    title = f"{name} hidden states".strip().capitalize()
    places = sum(places for _, _, places in found.values())
    caption = f"max |Δ| over {short_count(places)} values; 0 is the embedding, {max(found)} what leaves the last block."
    if all(bitwise for _, bitwise, _ in found.values()):
        squares = [("equal", str(layer), f"layer {layer}: bitwise equal") for layer in found]
        return figure(title, cells(squares), caption)
    values = [found[layer][0] if layer in found else None for layer in range(max(found) + 1)]
    return figure(title, by_layer([Series("max |Δ|", AFTER, values)], log=True), caption)


def _lead(stacks: Mapping[str, Mapping[int, tuple[float, bool, int]]]) -> str:
    first = [
        (f"{name} layer {layer}".strip(), largest)
        for name, found in stacks.items()
        for layer, (largest, bitwise, _) in found.items()
        if not bitwise
    ]
    if not first:
        return "Every hidden state is the source's, bit for bit."
    return f"The first difference is at {first[0][0]}: {number(first[0][1])}. The largest is {number(max(v for _, v in first))}."


def _others(items: list[Mapping[str, Any]]) -> Any:
    rows = [row for name, found in _merged(items) for row in [_row(name, found)]]
    columns = [("output", "m"), ("values", "n"), ("max |Δ|", "n"), ("result", "n")]
    return table(columns, rows) if rows else None


def _row(name: str, found: list[Mapping[str, Any]]) -> tuple[object, ...]:
    largest = max(float(item["largest"]) for item in found)
    allowed = max(float(item["allowed"]) for item in found)
    bitwise = all(item["bitwise"] for item in found)
    places = short_count(sum(item["places"] for item in found))
    return (name, places, number(largest), "bitwise" if bitwise else f"≤ {number(allowed)}" if allowed else "measured")


def _merged(items: list[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Outputs by name, the steps of cached decoding together."""
    names: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        name = re.sub(r"^step \d+ ", "cached decoding: ", item["name"])
        names.setdefault(name, []).append(item)
    yield from names.items()
