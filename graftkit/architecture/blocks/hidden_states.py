"""Which hidden state of a class is which block's: most give what the first block takes as the first of them, some what it gives."""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import tree_leaves

from graftkit.architecture.layers import LayerList
from graftkit.architecture.meta_run import inputs_on_meta, prepare_for_meta
from graftkit.architecture.skeleton import Skeleton, quiet
from graftkit.architecture.zero_flow import KnownZeros, is_tensor, memory_of


def begins_behind_first(skeleton: Skeleton, layers: LayerList) -> bool:
    """Whether the first hidden state is what the first block gives; False too where the class does not run on the meta device."""
    import torch

    model = skeleton.model
    given: list[Any] = []
    block = model.get_submodule(layers.prefix(0)[:-1])
    hook = block.register_forward_hook(lambda _, __, made: given.extend(filter(is_tensor, tree_leaves(made))))
    try:
        with KnownZeros(()), quiet(), torch.device("meta"), torch.no_grad():
            prepare_for_meta(model)
            found: Any = model(**inputs_on_meta(model), use_cache=False, return_dict=True, output_hidden_states=True)
    except Exception:  # noqa: BLE001 - forwards raise whatever they like without values; then nothing is known
        return False
    finally:
        hook.remove()
    states = found.get("decoder_hidden_states") or found.get("hidden_states")
    return bool(given and states and is_tensor(states[0]) and memory_of(states[0]) == memory_of(given[0]))
