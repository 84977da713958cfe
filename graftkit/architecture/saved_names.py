"""The tensors of a model in memory by the names that `save_pretrained` would write them under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from graftkit.architecture.names import tensor_names
from graftkit.architecture.skeleton import one_line, quiet
from graftkit.checkpoint.held import Held
from graftkit.checkpoint.reading import TAGS
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def saved_tensors(model: PreTrainedModel) -> dict[str, Held]:
    """What `save_pretrained` would write, by name on disk; no value is copied or computed yet.

    Raises:
        InputRejected: transformers would not save the model, or stores a dtype that safetensors files have no name for.
    """
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    state = _without_ties(model)
    hollow = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    origins = {id(value): name for name, value in hollow.items()}
    with quiet():
        try:
            saved = revert_weight_conversion(model, dict(hollow))
        except Exception as error:  # transformers raises whatever its conversions run into
            raise InputRejected(
                f"{type(model).__name__}: transformers cannot save this model: {one_line(error)}"
            ) from error
    made_of: dict[str, list[str]] = {}
    for name, disks in tensor_names(model, saved).disk.items():
        for disk in disks:
            made_of.setdefault(disk, []).append(name)
    found = {}
    for disk, value in saved.items():
        origin = origins.get(id(value))
        names = tuple(made_of.get(disk, ())) if origin is None else (origin,)
        found[disk] = _held(model, state, disk, value, names, plain=origin is not None)
    return found


def _held(
    model: PreTrainedModel, state: Mapping[str, Tensor], disk: str, value: Tensor, names: tuple[str, ...], *, plain: bool
) -> Held:  # fmt: skip
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in TAGS or not all(name in state for name in names) or not names:
        what = f"has dtype {dtype}" if dtype not in TAGS else "has no tensor behind it"
        raise InputRejected(f"{type(model).__name__}: {printable(disk)!r} {what}, which cannot be worked on in memory")
    if plain:
        return Held(TAGS[dtype], tuple(value.shape), lambda: state[names[0]], names, plain=True)

    def convert() -> Tensor:
        from transformers.core_model_loading import revert_weight_conversion

        with quiet():
            made: Tensor = revert_weight_conversion(model, {name: state[name] for name in names})[disk]
        return made

    return Held(TAGS[dtype], tuple(value.shape), convert, names, plain=False)


def _without_ties(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict less what is not saved, each shared tensor once."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    ignored = set(model._keys_to_ignore_on_save or ())  # noqa: SLF001 - what save_pretrained reads
    state = {name: value for name, value in model.state_dict().items() if name not in ignored}
    with quiet():
        try:
            kept: dict[str, Tensor] = remove_tied_weights_from_state_dict(state, model)
        except Exception as error:  # a RuntimeError that names tensors which share memory
            raise InputRejected(
                f"{type(model).__name__}: transformers cannot save this model: {one_line(error)}"
            ) from error
    return kept
