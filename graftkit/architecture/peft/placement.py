"""Where the tensors of an adapter go: peft puts a base and an adapter without data together on the meta device."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.limits import beyond_limits
from graftkit.architecture.peft.parts import NAME, PREFIX
from graftkit.architecture.skeleton import one_line, quiet
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.computed import computed
from graftkit.checkpoint.reading import read_tensor, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: Inits at which peft changes the base's weights whenever it loads the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(slots=True)
class Placement:
    """Finds the adapter's tensor behind a parameter that peft has filled; ``unused`` holds names not yet asked for.

    Tensors that peft converts on loading, such as one for each expert, are computed: by peft, from all at once.
    """

    names: Mapping[int, str]
    tensors: Mapping[str, LazyTensor]
    convert: Callable[[], Mapping[str, Tensor]]
    converted: frozenset[str]
    unused: set[str]

    def tensor_behind(self, parameter: Tensor, path: str) -> LazyTensor:
        """The tensor that was put into ``parameter``, whose name in the model is ``path``."""
        name = self.names.get(id(parameter))
        if name is not None:
            self.unused.discard(name)
            return self.tensors[name]
        key = PREFIX + path.replace(f".{NAME}.", ".")
        if key not in self.converted:
            raise InputRejected(f"the adapter has no tensor for {printable(path)}")
        return computed("F32", tuple(parameter.shape), lambda: self.convert()[key])


def fill(model: PreTrainedModel, adapter: Adapter) -> Placement:
    """Let peft load tensors without data, and note by identity where each went."""
    import torch
    from peft import set_peft_model_state_dict
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    def empty(tensor: LazyTensor) -> nn.Parameter:
        data = torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device="meta")
        return torch.nn.Parameter(data, requires_grad=False)

    state = {name: empty(tensor) for name, tensor in adapter.tensors.items()}
    convert = functools.partial(convert_peft_adapter_state_dict_for_transformers, model, model.peft_config[NAME])
    names = {id(tensor): name for name, tensor in state.items()}
    converted = convert(dict(state))
    fresh = frozenset(key for key, tensor in converted.items() if id(tensor) not in names)
    again = repeated_names(model)
    unused = {names[id(tensor)] for tensor in converted.values() if id(tensor) in names} - again
    result = set_peft_model_state_dict(model, dict(state), adapter_name=NAME, low_cpu_mem_usage=True)
    if strange := set(result.unexpected_keys) - again:
        raise InputRejected(_no_place(model, min(strange), state))
    lost = [key for key in result.missing_keys if ".lora_" in key]
    if lost:
        raise InputRejected(f"tensor {printable(min(lost).replace(f'.{NAME}.', '.'))!r} is missing")
    return Placement(names, adapter.tensors, functools.cache(lambda: _converted(convert, adapter)), fresh, unused)


def _no_place(model: Any, name: str, state: Collection[str]) -> str:
    """Why a tensor that peft calls ``name`` finds no place, where ``state`` are the names that the adapter has."""
    base = model.get_base_model()
    modules, module = dict(base.named_modules()), name.removeprefix(PREFIX).partition(".lora_")[0]
    if name not in state:
        why = (
            "the name is none of the adapter's: peft makes it, as transformers renames older checkpoints of this class"
        )
    elif module in modules:
        why = (
            f"it has {printable(module)}, which peft does not adapt by adapter_config.json: target_modules names others, or peft takes"
            " them for parts of fused weights"
        )
    else:
        why = "is it another base's, or does the base lack the adapter's head (replace_head goes before merge_adapter)?"
    return f"{type(base).__name__} has no place for tensor {printable(name)!r}; {why}"


def repeated_names(model: PreTrainedModel) -> frozenset[str]:
    """Names of tensors that peft saves after the vocabulary grew, beside the name that it loads them by, and never reads again.

    With a table it then saves everything below that table's name, by the names in memory, with the adapter's or without.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    wrappers = [
        (path, module) for path, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)
    ]
    names = (f"{path}.{name}" for path, module in wrappers for name in module.state_dict())
    inside = [name for name in names if f".{NAME}." in f"{name}."]
    return frozenset(inside) | {f"{name}.".replace(f".{NAME}.", ".")[:-1] for name in inside}


def _converted(convert: Callable[[dict[str, Tensor]], dict[str, Tensor]], adapter: Adapter) -> dict[str, Tensor]:
    with quiet():
        return convert({name: read_tensor(tensor) for name, tensor in adapter.tensors.items()})


def peft_config(adapter: Adapter) -> Any:
    """The adapter's config as peft's own, every field of it known to the installed peft."""
    from peft import LoraConfig

    config = dict(adapter.config)
    if config["peft_type"] != "LORA":
        raise InputRejected(
            f"adapter_config.json: peft_type {printable(config['peft_type'])!r} is not LORA; merge it with peft"
        )
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    unknown = sorted(key for key, value in config.items() if key not in known and value)
    if unknown:
        raise InputRejected(
            f"adapter_config.json: {printable(unknown[0])!r} is not a field of the installed peft's LoraConfig;"
            " install the peft that wrote it"
        )
    for alpha in (config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()):
        if isinstance(alpha, float) and not math.isfinite(alpha):
            raise InputRejected(f"adapter_config.json: an alpha is {alpha}: the adapter would give no number")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise InputRejected(
            f"adapter_config.json: init_lora_weights {printable(init)!r} makes peft change the base's weights at"
            " every load; convert it with save_pretrained(path_initial_model_for_weight_conversion=...) first"
        )
    if config.get("layer_replication"):
        raise InputRejected("adapter_config.json: layer_replication repeats layers of the base; not supported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return LoraConfig.from_peft_type(**{key: value for key, value in config.items() if key in known})
        except Exception as error:  # the config's own checks raise anything
            raise InputRejected(f"adapter_config.json: peft refuses it: {one_line(error)}") from error


def wrap_on_meta(model: PreTrainedModel, config: Any) -> Any:
    """Wrap ``model``, which is on the meta device, by the class that `PeftModel.from_pretrained` would take."""
    import torch
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    if why := beyond_limits(config.to_dict(), model):
        raise InputRejected(f"adapter_config.json: {why}")
    config.inference_mode = True
    wrapper = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    with torch.device("meta"):
        return wrapper(model, config, NAME, low_cpu_mem_usage=True)
