"""The model whose head is being made, with its label projection taken out: what it gives are the features."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.head import Head
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor, torch_dtype
from graftkit.errors import RecipeError, printable
from graftkit.running.forward import undisturbed
from graftkit.running.texts import load_tokenizer, write_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def feature_model(result: Checkpoint, head: Head, *, dtype: str | None = None) -> Iterator[tuple[Any, Any]]:
    """Yield the model, in the dtype that it is stored in or in ``dtype``, and its tokenizer; nothing else is disturbed.

    The label projection is an identity, so the logits are the features: pooled as the class pools them.

    Raises:
        RecipeError: the class has more than one label projection, or one that is no linear layer.
    """
    import torch

    name = projection_of(head)
    projection = {tensor.name for tensor in head.tensors if tensor.part != "inner"}
    with tempfile.TemporaryDirectory(prefix="graftkit-") as folder:
        write_tokenizer(result, Path(folder))
        state = {
            key: torch.zeros(lazy.shape, dtype=torch_dtype(lazy.dtype)) if key in projection else read_tensor(lazy)
            for key, lazy in result.tensors.items()
        }
        stored = next(lazy.dtype for key, lazy in result.tensors.items() if key in projection)
        with loaded_model(head.skeleton, state, dtype or stored) as model:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, torch.nn.Identity())
            yield model, load_tokenizer(Path(folder))


@contextlib.contextmanager
def loaded_model(skeleton: Skeleton, state: dict[str, Any], dtype: str) -> Iterator[Any]:
    """Yield the skeleton's class with real tensors, in eval mode and ``dtype``; global state is restored afterwards."""
    with undisturbed():
        model: PreTrainedModel = type(skeleton.model).from_pretrained(
            None, config=skeleton.model.config, state_dict=state, dtype=torch_dtype(dtype)
        )
        yield model.eval()


def projection_of(head: Head) -> str:
    """The name in memory of the linear layer that makes the logits.

    Raises:
        RecipeError: there is another number of them than one, or it is no linear layer.
    """
    import torch

    names = {tensor.name.rpartition(".")[0] for tensor in head.tensors_of("projection")}
    module = head.skeleton.model.get_submodule(min(names)) if len(names) == 1 else None
    if not isinstance(module, torch.nn.Linear):
        raise RecipeError(
            f"the label projection of {head.skeleton.architecture} is not one linear"
            f" layer ({', '.join(map(printable, sorted(names)))}), which is all that can be fitted",
            field="init",
        )
    return min(names)
