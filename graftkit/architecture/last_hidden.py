"""The width of what stands behind the last block of a class, where value heads are put: seen on the meta device."""

from __future__ import annotations

from typing import Any

from graftkit.architecture.meta_run import inputs_on_meta, prepare_for_meta
from graftkit.architecture.skeleton import Skeleton, quiet
from graftkit.architecture.zero_flow import KnownZeros, is_tensor


def last_hidden_width(skeleton: Skeleton) -> int | None:
    """The width of the last hidden state; None where the class gives none, or does not run on the meta device."""
    import torch

    model = skeleton.model
    try:
        with KnownZeros(()), quiet(), torch.device("meta"), torch.no_grad():
            prepare_for_meta(model)
            found: Any = model(**inputs_on_meta(model), use_cache=False, return_dict=True, output_hidden_states=True)
    except Exception:  # noqa: BLE001 - forwards raise whatever they like without values; then nothing is known
        return None
    states = found.get("hidden_states")
    return int(states[-1].shape[-1]) if states and is_tensor(states[-1]) else None
