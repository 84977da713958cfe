"""The check that runs the result on its new ids: no table that a token id reaches may be too short for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graftkit.architecture.skeleton import one_line
from graftkit.running.forward import run
from graftkit.running.probes import Probe


def run_new_ids(model: Any, part: Probe, extra_inputs: frozenset[str], fresh: tuple[int, ...]) -> list[str]:
    """Run the first row of ``part`` with new ids, as many as there is room for, in every second place.

    Returns a sentence where the forward fails or gives NaN; what the outputs are nobody promised.
    """
    import torch

    ids = part.ids[:1].clone()
    places = range(1, ids.shape[1], 2)
    chosen = [fresh[index * len(fresh) // len(places)] for index in range(len(places))]
    ids[0, list(places)] = torch.tensor(chosen, dtype=ids.dtype)
    try:
        outputs = run(model, replace(part, name="new ids", ids=ids, mask=torch.ones_like(ids)), extra_inputs)
    except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
        return [f"outputs: the result's forward fails on the new ids: {one_line(error)}"]
    broken = sorted(name for name, value in outputs.items() if value.isnan().any())
    return [f"outputs: {broken[0]} of the new ids holds NaN"] if broken else []
