"""A model's dimensions, the modules that adapters can target, and what an adapter trains, as text for a terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from graftkit.errors import plural
from graftkit.report.terminal.tables import Lines, table, text

if TYPE_CHECKING:
    from graftkit.architecture.dimensions import Dimensions
    from graftkit.inspection import Inspection
    from graftkit.planned import Plan


def print_modules(console: Lines, found: Inspection) -> None:
    """Print the dimensions, the chat template, and what adapters can target."""
    console.print(f"size        {text('; '.join(dimension_words(found.dimensions)))}")
    if found.rows:
        named = ", ".join(
            f"{name or 'chat template'} ({plural(size, 'character')})" for name, size in found.chat_templates.items()
        )
        console.print(f"template    {text(named) or 'none'}")
    if found.model_max_length is not None:
        console.print(f"tokenizer   cuts at {found.model_max_length:,} tokens, unless told otherwise")
    targets = table("adapters can target", "name", "kind", "inputs -> outputs")
    for group in found.modules:
        targets.add_row(text(group.label), group.kind, group.size)
    if found.modules:
        console.print(targets)


def dimension_words(found: Dimensions) -> Iterator[str]:
    """Yield ``3 layers (model.layers)``, ``width 160``, and what else is known."""
    for name, count in found.layers.items():
        yield f"{plural(count, 'layer')} ({name})"
    if found.hidden_size:
        inner = f", {found.intermediate_size:,} inside a block" if found.intermediate_size else ""
        yield f"width {found.hidden_size:,}{inner}"
    if found.heads:
        each = f" of {found.head_dim}" if found.head_dim else ""
        shared = found.key_value_heads
        keys = f", {shared} for keys and values" if shared and shared != found.heads else ""
        yield f"{plural(found.heads, 'head')}{each}{keys}"
    if found.positions:
        yield f"context {plural(found.positions, 'position')}"


def print_adapted(console: Lines, plan: Plan) -> None:
    """Print what the adapter trains, by module, and how many parameters that is; nothing where no adapter is made."""
    groups = plan.adapted
    if not groups:
        return
    found = table("the adapter trains", "module", "where", "inputs -> outputs", "parameters")
    for group in groups:
        found.add_row(text(group.name), group.number, " -> ".join(map(str, group.shape)), f"{group.parameters:,}")
    console.print(found)
    console.print(f"trainable  {trainable_words(plan)}")


def trainable_words(plan: Plan) -> str:
    """``92,160 parameters, 3.2 % of the base's 2,900,000``."""
    total, base = _trainable(plan), sum(math.prod(tensor.shape) for tensor in plan.result.tensors.values())
    return f"{plural(total, 'parameter')}, {100 * total / base:.2g} % of the base's {base:,}"


def adapted_json(plan: Plan) -> dict[str, Any]:
    """What the adapter trains, as JSON values; None where no adapter is made."""
    if plan.adapter is None:
        return {"adapted_modules": None, "trainable_parameters": None}
    return {
        "adapted_modules": [dataclasses.asdict(group) for group in plan.adapted],
        "trainable_parameters": _trainable(plan),
    }


def _trainable(plan: Plan) -> int:
    return sum(group.parameters for group in plan.adapted)
