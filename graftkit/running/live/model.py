"""A model in memory as a checkpoint: its documents lie in a folder, its weights are looked at where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.saved_names import saved_tensors
from graftkit.architecture.skeleton import one_line, quiet
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.held import Held
from graftkit.errors import InputRejected
from graftkit.running.live.refusals import check_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: What fresh memory of torch is aligned to, in bytes: float32 kernels take another path where a weight is aligned to less.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True, eq=False)
class LiveModel:
    """A checkpoint whose weights are those of ``model``; ``directory`` holds its documents and no weights."""

    directory: Path
    model: PreTrainedModel
    checkpoint: Checkpoint

    @classmethod
    def of(cls, model: PreTrainedModel, directory: Path, name: str) -> LiveModel:
        """Read the documents that lie in ``directory``, and give the weights of ``model`` their names on disk.

        Raises:
            InputRejected: transformers cannot save the model, or a document is malformed.
        """
        return cls(directory, model, Checkpoint.of_model(name, directory, saved_tensors(model)))

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.checkpoint.name

    def release(self) -> None:
        """Let what remembers the checkpoint keep no weight in memory."""
        for tensor in self.checkpoint.tensors.values():
            if isinstance(tensor, Held):
                tensor.release()


def open_live(model: Any, tokenizer: Any, directory: Path) -> LiveModel:
    """Open a model of transformers and its tokenizer, which may be None; their documents are written to ``directory``.

    Raises:
        InputRejected: the weights are not all in memory as they are, or transformers cannot save config or tokenizer.
    """
    check_model(model)
    directory.mkdir()
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = str(model.dtype).removeprefix("torch."), [type(model).__name__]
    _save("config", config, directory)
    if model.can_generate():
        _save("generation config", model.generation_config, directory)
    if tokenizer is not None:
        _save("tokenizer", tokenizer, directory)
    return LiveModel.of(model, directory, model.name_or_path or type(model).__name__)


def _save(what: str, value: Any, directory: Path) -> None:
    with quiet():
        try:
            value.save_pretrained(directory)
        except Exception as error:  # whatever is no config or tokenizer, or one that transformers refuses
            raise InputRejected(f"the {what} cannot be saved: {one_line(error)}") from error


def same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second model whose parameters and buffers lie in the memory of those of ``model``: neither sees other changes."""
    return _second(model, lambda tensor: tensor)


def fresh_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second model with a copy of every parameter and buffer."""
    return _second(model, lambda tensor: tensor.clone())


def aligned_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The same as :func:`same_weights` but for float32 weights that are not aligned as fresh memory is, which are copied."""
    import torch

    def align(tensor: Tensor) -> Tensor:
        loose = tensor.dtype == torch.float32 and tensor.data_ptr() % ALIGNMENT
        return tensor.clone() if loose else tensor

    return _second(model, align)


def _second(model: PreTrainedModel, make: Callable[[Tensor], Tensor]) -> PreTrainedModel:
    """A deep copy of a model whose parameters and buffers are what ``make`` gives for the detached old ones; ties stay.

    Raises:
        InputRejected: something that hangs on the model cannot be copied.
    """
    import torch

    second: dict[int, Any] = {}
    for parameter in model.parameters():
        second[id(parameter)] = torch.nn.Parameter(make(parameter.detach()), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        second[id(buffer)] = make(buffer.detach())
    try:
        return copy.deepcopy(model, second)
    except Exception as error:  # a hook's own objects, a tensor with a history
        raise InputRejected(f"{type(model).__name__}: cannot be copied: {one_line(error)}") from error
