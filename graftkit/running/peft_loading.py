"""Load an adapter on its base, as a user does or as a trainer does, and say what peft had to say of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.limits import beyond_limits
from graftkit.architecture.peft.parts import NAME
from graftkit.architecture.peft.placement import repeated_names
from graftkit.architecture.peft.tuner import fill_with_stand_ins, silent
from graftkit.architecture.skeleton import build_skeleton, one_line
from graftkit.checkpoint.adapter import CONFIG, WEIGHTS, Adapter, AdapterPlace, adapter_at, config_at
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import InputRejected, VerificationFailed, few
from graftkit.running.assembled import assemble
from graftkit.running.forward import Loaded, load
from graftkit.running.place import Place, open_place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The tensor of learnt vectors.
PROMPT = "prompt_embeddings"


def load_adapted(source: Place, adapter: AdapterPlace, base: Checkpoint | None = None) -> Loaded:
    """Load ``source`` (or ``base``, where that is only planned) and put ``adapter`` on it, as a user would.

    The model is the plain class with peft's layers in it, in eval mode.

    Raises:
        VerificationFailed: base or adapter do not load.
    """
    loaded = load(source) if base is None else assembled(base)
    return dataclasses.replace(loaded, model=adapt(loaded.model, adapter).get_base_model().eval())


def merged_by_peft(source: Place, adapter: AdapterPlace, base: Checkpoint | None = None) -> Any:
    """The same as :func:`load_adapted`, merged by peft itself in the dtype of the base."""
    loaded = load(source) if base is None else assembled(base)
    return adapt(loaded.model, adapter).merge_and_unload().eval()


def adapt(model: PreTrainedModel, adapter: AdapterPlace, *, trainable: bool = False) -> Any:
    """The peft model of ``model`` and an adapter; a ``trainable`` one is ready to be trained, in train mode.

    Raises:
        VerificationFailed: peft does not load it.
    """
    from peft import PeftModel

    _check_limits(model, adapter)
    try:
        if isinstance(adapter, Adapter):
            return put_on(model, adapter, trainable=trainable)[0]
        return PeftModel.from_pretrained(model, str(adapter), adapter_name=NAME, is_trainable=trainable)
    except Exception as error:  # peft raises whatever it runs into
        raise VerificationFailed(
            f"adapter: peft does not load it on {type(model).__name__}: {one_line(error)}"
        ) from error


def put_on(model: PreTrainedModel, adapter: Adapter, *, trainable: bool) -> tuple[Any, list[str], list[str]]:
    """What `PeftModel.from_pretrained` makes of an adapter in a folder, of one in memory; and the missing and unexpected names.

    Raises:
        Exception: whatever peft raises.
    """
    from peft import PeftModel, set_peft_model_state_dict
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    config = peft_config(adapter)
    config.inference_mode = not trainable
    config.base_model_name_or_path = config.base_model_name_or_path or model.name_or_path or None
    made = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)(model, config, NAME)
    result = set_peft_model_state_dict(made, _values(adapter), adapter_name=NAME)
    if hasattr(made.base_model, "_cast_adapter_dtype"):
        made.base_model._cast_adapter_dtype(adapter_name=NAME, autocast_adapter_dtype=True)  # noqa: SLF001 - as peft does
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "")
    missing = [name for name in result.missing_keys if prefix in name and NAME in name]
    return made.train(trainable), missing, list(result.unexpected_keys)


def peft_config(adapter: Adapter) -> Any:
    """The config of an adapter as peft reads it."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[adapter.config["peft_type"]].from_peft_type(**adapter.config)


def _values(adapter: Adapter) -> dict[str, Any]:
    return {name: read_tensor(tensor) for name, tensor in adapter.tensors.items()}


def put_inside(model: PreTrainedModel, adapter: AdapterPlace) -> None:
    """Let transformers put an adapter into ``model`` itself.

    Raises:
        ValueError: peft says that this kind cannot be put into a model of transformers.
    """
    if isinstance(adapter, Adapter):
        model.load_adapter(peft_config=peft_config(adapter), adapter_state_dict=_values(adapter))
    else:
        model.load_adapter(str(adapter))


def _check_limits(model: Any, adapter: AdapterPlace) -> None:
    if why := beyond_limits(config_at(adapter), model):
        raise InputRejected(f"{CONFIG}: {why}")


def assembled(base: Checkpoint) -> Loaded:
    """The model of a checkpoint that lies on no disk: every tensor is read or computed."""
    return Loaded(assemble(base)[0].eval(), frozenset(), frozenset(), frozenset())


def stand_ins(base: Place) -> Loaded:
    """The model of ``base`` with stand-ins for its weights: peft can put adapters on it, and nothing can be run."""
    skeleton = build_skeleton(open_place(base).config)
    fill_with_stand_ins(skeleton.model, {})
    return Loaded(skeleton.model, frozenset(), frozenset(), frozenset())


def with_peft(model: PreTrainedModel, adapter: AdapterPlace) -> tuple[Any, tuple[str, ...]]:
    """Load the adapter as a trainer does; a sentence for names that are missing, and one for unexpected ones."""
    _check_limits(model, adapter)
    with silent():
        loaded, missing, unexpected = _put_twice(model, adapter)
    loaded.eval()
    prompts = loaded.active_peft_config.is_prompt_learning
    other = _other_prompt(loaded, adapter) if prompts else ()
    if prompts:
        unexpected.remove(PROMPT)  # peft puts it where it belongs, and calls it unexpected all the same
    strange = [name for name in unexpected if name not in repeated_names(loaded)]
    both = (("missing", _lost(loaded, missing)), ("unexpected", strange))
    return loaded, (*other, *(f"adapter: peft reports {what} tensors: {few(names)}" for what, names in both if names))


def _put_twice(model: PreTrainedModel, adapter: AdapterPlace) -> tuple[Any, list[str], list[str]]:
    """The peft model with missing and unexpected names, for which an adapter in a folder has to be loaded once more."""
    from peft import PeftConfig, PeftModel

    if isinstance(adapter, Adapter):
        return put_on(model, adapter, trainable=True)
    prompts = PeftConfig.from_pretrained(str(adapter)).is_prompt_learning  # peft loads these for inference alone
    loaded = PeftModel.from_pretrained(model, str(adapter), is_trainable=not prompts)
    result = loaded.load_adapter(str(adapter), NAME, is_trainable=not prompts)
    return loaded, result.missing_keys, result.unexpected_keys


def _other_prompt(model: PreTrainedModel, adapter: AdapterPlace) -> tuple[str, ...]:
    """A sentence where the learnt vectors are not those of the file."""
    stored = read_tensor(adapter_at(adapter).tensors[PROMPT])
    equal = model.prompt_encoder[NAME].embedding.weight.to(stored.dtype).equal(stored)
    return () if equal else (f"adapter: the vectors that peft loads are not those of {WEIGHTS}",)


def _lost(model: PreTrainedModel, missing: list[str]) -> list[str]:
    """The ``missing`` names less those of a parameter that was loaded under another of its names."""
    everywhere = list(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameter) for name, parameter in everywhere if name not in missing}
    aliases = {name for name, parameter in everywhere if id(parameter) in loaded}
    return [name for name in missing if name not in aliases]
