"""Load an adapter on its base, as a user does or as a trainer does, and say what peft had to say of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.limits import beyond_limits
from graftkit.architecture.peft.parts import NAME
from graftkit.architecture.peft.placement import repeated_names
from graftkit.architecture.peft.tuner import fill_with_stand_ins, silent
from graftkit.architecture.skeleton import build_config, build_skeleton, one_line
from graftkit.checkpoint.adapter import CONFIG, WEIGHTS, read_adapter_config
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import InputRejected, VerificationFailed, few
from graftkit.running.forward import Loaded, load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The tensor of learnt vectors.
PROMPT = "prompt_embeddings"


def load_adapted(source: Path, folder: Path, base: Checkpoint | None = None) -> Loaded:
    """Load ``source`` (or ``base``, where that is only planned) and put the adapter of ``folder`` on it, as a user would.

    The model is the plain class with peft's layers in it, in eval mode.

    Raises:
        VerificationFailed: base or adapter do not load.
    """
    loaded = load(source) if base is None else assembled(base)
    return dataclasses.replace(loaded, model=adapt(loaded.model, folder).get_base_model().eval())


def merged_by_peft(source: Path, folder: Path, base: Checkpoint | None = None) -> Any:
    """The same as :func:`load_adapted`, merged by peft itself in the dtype of the base."""
    loaded = load(source) if base is None else assembled(base)
    return adapt(loaded.model, folder).merge_and_unload().eval()


def adapt(model: PreTrainedModel, folder: Path) -> Any:
    """The peft model of ``model`` and the adapter of ``folder``.

    Raises:
        VerificationFailed: peft does not load it.
    """
    from peft import PeftModel

    _check_limits(model, folder)
    try:
        return PeftModel.from_pretrained(model, str(folder), adapter_name=NAME)
    except Exception as error:  # peft raises whatever it runs into
        raise VerificationFailed(
            f"adapter: peft does not load it on {type(model).__name__}: {one_line(error)}"
        ) from error


def _check_limits(model: Any, folder: Path) -> None:
    if why := beyond_limits(read_adapter_config(folder), model):
        raise InputRejected(f"{CONFIG}: {why}")


def assembled(base: Checkpoint) -> Loaded:
    """The model of a checkpoint that lies on no disk: every tensor is read or computed."""
    state = {name: read_tensor(tensor) for name, tensor in base.tensors.items()}
    model_class = type(build_skeleton(base.config).model)
    model = model_class.from_pretrained(None, config=build_config(base.config), state_dict=state)
    return Loaded(model.eval(), frozenset(), frozenset(), frozenset())


def stand_ins(base: Path) -> Loaded:
    """The model of the folder ``base`` with stand-ins for its weights: peft can put adapters on it, and nothing can be run."""
    skeleton = build_skeleton(Checkpoint.open(str(base)).config)
    fill_with_stand_ins(skeleton.model, {})
    return Loaded(skeleton.model, frozenset(), frozenset(), frozenset())


def with_peft(model: PreTrainedModel, adapter: Path) -> tuple[Any, tuple[str, ...]]:
    """Load the adapter as a trainer does; a sentence for names that are missing, and one for unexpected ones."""
    from peft import PeftConfig, PeftModel

    _check_limits(model, adapter)
    prompts = PeftConfig.from_pretrained(str(adapter)).is_prompt_learning  # peft loads these for inference alone
    with silent():
        loaded = PeftModel.from_pretrained(model, str(adapter), is_trainable=not prompts)
        result = loaded.load_adapter(str(adapter), NAME, is_trainable=not prompts)
    loaded.eval()
    other = _other_prompt(loaded, adapter) if prompts else ()
    if prompts:
        result.unexpected_keys.remove(PROMPT)  # peft puts it where it belongs, and calls it unexpected all the same
    strange = [name for name in result.unexpected_keys if name not in repeated_names(loaded)]
    both = (("missing", _lost(loaded, result.missing_keys)), ("unexpected", strange))
    return loaded, (*other, *(f"adapter: peft reports {what} tensors: {few(names)}" for what, names in both if names))


def _other_prompt(model: PreTrainedModel, adapter: Path) -> tuple[str, ...]:
    """A sentence where the learnt vectors are not those of the file."""
    from safetensors.torch import load_file

    stored = load_file(adapter / WEIGHTS)[PROMPT]
    equal = model.prompt_encoder[NAME].embedding.weight.to(stored.dtype).equal(stored)
    return () if equal else (f"adapter: the vectors that peft loads are not those of {WEIGHTS}",)


def _lost(model: PreTrainedModel, missing: list[str]) -> list[str]:
    """The ``missing`` names less those of a parameter that was loaded under another of its names."""
    everywhere = list(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameter) for name, parameter in everywhere if name not in missing}
    aliases = {name for name, parameter in everywhere if id(parameter) in loaded}
    return [name for name in missing if name not in aliases]
