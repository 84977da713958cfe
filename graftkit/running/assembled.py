"""The model of a checkpoint whose tensors lie in no file that transformers loads."""

from __future__ import annotations

from typing import Any

from graftkit.architecture.skeleton import build_config, build_skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor


def assemble(base: Checkpoint, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model, put together from tensors that are all read or computed, and what the loader says of them.

    ``options`` are given to `from_pretrained`.
    """
    state = {name: read_tensor(tensor) for name, tensor in base.tensors.items()}
    model_class: Any = type(build_skeleton(base.config).model)
    config = build_config(base.config)
    found: tuple[Any, dict[str, Any]] = model_class.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, **options
    )
    return found
