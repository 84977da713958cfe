"""A plan as JSON values, and what a report says of it too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.weights_on_hub import bytes_on_hub
from graftkit.report.terminal.modules import adapted_json

if TYPE_CHECKING:
    from graftkit.planned import Plan
    from graftkit.verification.promises import PromiseClass


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
        "base_model": plan.source.name,
        "revision": plan.source.revision,
        "output": plan.recipe.output,
        "promise": promise_json(plan),
        "new_tokens": dict(plan.new_tokens),
        "renamed_tokens": plan.renamed_tokens,
        "tensors": [dataclasses.asdict(change) for change in plan.tensors],
        "values": [dataclasses.asdict(change) for change in plan.values],
        "notes": list(plan.notes),
        "adapter": {name: [tensor.dtype, list(tensor.shape)] for name, tensor in plan.adapter.tensors.items()}
        if plan.adapter
        else None,
        **adapted_json(plan),
        "bytes_taken_over": plan.bytes_taken_over,
        "bytes_written": plan.bytes_written,
        "memory": plan.memory,
        "bytes_to_download": bytes_on_hub(plan.source) if plan.reads_weights else 0,
        "left_behind": dict(plan.source.left_behind),
    }


def promise_json(
    plan: Plan, measured: PromiseClass | None = None, kl: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What is promised; and once it was applied, the class that was ``measured`` and the bound on the KL."""
    return {
        **dataclasses.asdict(plan.promise),
        "strength": plan.promise.strength.word,
        "measured": None if measured is None else measured.word,
        "scope": plan.scope.value,
        "kl": kl,
    }


def source_json(plan: Plan) -> dict[str, Any]:
    """The checkpoint that is operated on."""
    source = plan.source
    return {"name": source.name, "revision": source.revision, "left_behind": dict(source.left_behind)}
