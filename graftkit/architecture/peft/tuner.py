"""Any adapter that peft makes, initialised by peft itself on a model whose weights are stand-ins.

A stand-in has the shape and dtype of a weight and hardly any memory. Whatever peft computes from one is noticed, so that the
weights that it needs, and no others, are read and given to it in a second run.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.injection import saved_config
from graftkit.architecture.peft.limits import beyond_limits
from graftkit.architecture.peft.parts import NAME, PREFIX, SavedPart, adapter_parts
from graftkit.architecture.skeleton import Skeleton, one_line, quiet
from graftkit.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

#: Operations that take long on a large matrix, by torch's names.
DECOMPOSITIONS = ("_linalg_svd", "linalg_qr", "_linalg_eigh", "linalg_eig")


@dataclass(frozen=True, slots=True)
class Tuned:
    """What peft made: the config as it would save it, the tensors by name in the file, and how it came about.

    ``modules`` are the names of the adapted modules, as far as peft tells them; ``trained`` those in memory of the base's
    weights that are adapted or trained whole; ``read`` those of stand-ins that peft has computed with: where there are any, the
    tensors have the right shapes and dtypes, but not the right values. ``frozen`` names the tensors that peft does not train.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    modules: tuple[str, ...]
    trained: frozenset[str]
    read: frozenset[str]
    frozen: frozenset[str]


def tune(
    skeleton: Skeleton, peft_type: str, fields: Mapping[str, Any], weights: Mapping[str, Tensor], seed: int
) -> Tuned:
    """Let peft make an adapter for ``skeleton``, which is used up; ``weights`` hold values by name in memory.

    Raises:
        RecipeError: peft refuses, in its own words.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    model = skeleton.model
    if why := beyond_limits(fields, model):
        raise RecipeError(why)
    standing = fill_with_stand_ins(model, weights)
    reads = _note_reads(standing)
    with silent(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            config = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type](**fields)
            with reads:
                adapted = get_peft_model(model, config, adapter_name=NAME)
                state = get_peft_model_state_dict(adapted, adapter_name=NAME, save_embedding_layers=False)
                tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
                frozen = _frozen(adapted, state)
        except Exception as error:  # peft raises ValueError, TypeError, KeyError and its own
            raise RecipeError(f"peft refuses: {one_line(error)}") from error
    modules = tuple(getattr(adapted.base_model, "targeted_module_names", ()))
    trained = frozenset(_trained(adapted, modules))
    return Tuned(saved_config(adapted), tensors, modules, trained, frozenset(reads.found), frozen)


def _frozen(adapted: PreTrainedModel, state: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of the tensors that are buffers, or parameters without a gradient."""
    still = [tensor for tensor in adapted.parameters() if not tensor.requires_grad]
    storages = {_storage(tensor) for tensor in (*still, *adapted.buffers())}
    return frozenset(name for name, tensor in state.items() if _storage(tensor) in storages)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep warnings, logs and progress bars of peft off the terminal."""
    with quiet(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def fill_with_stand_ins(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[int, str]:
    """Fill what is on the meta device with values from ``weights``, else with stand-ins; returns storage of each stand-in -> name."""
    import torch

    made: dict[int, Any] = {}
    standing = {}
    generator = torch.Generator().manual_seed(0)
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):  # noqa: SLF001 - torch offers no way to replace a tied parameter
            for leaf, old in held.items():
                if old is None or not old.is_meta:
                    continue
                name = f"{path}.{leaf}" if path else leaf
                if id(old) not in made:
                    value = weights.get(name)
                    if value is None:
                        value = _stand_in_for(old, generator)
                        standing[_storage(value)] = name
                    keep = isinstance(old, torch.nn.Parameter)
                    made[id(old)] = (
                        old,
                        torch.nn.Parameter(value, requires_grad=old.requires_grad) if keep else value,
                    )
                held[leaf] = made[id(old)][1]
    return standing


def _stand_in_for(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random values in which neighbours along every axis share their memory: element (i, j) is number i + j."""
    import torch

    shape = tuple(tensor.shape)
    size = max(sum(shape) - len(shape) + 1, 1)
    values = torch.randn(size, generator=generator).to(tensor.dtype)
    return values.as_strided(shape, (1,) * len(shape))


def _storage(tensor: Tensor) -> int:
    cdata: int = tensor.untyped_storage()._cdata  # noqa: SLF001 - the only identity of a storage that holds no data
    return cdata


def _note_reads(standing: Mapping[int, str]) -> Any:
    """A mode that notes in ``found`` the names of the stand-ins whose values an operation takes; views take none.

    Values that come after a stand-in was read are thrown away, so decompositions then give random ones of the right shapes.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map_only

    class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.found: set[str] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view:
                tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
                self.found.update(standing[key] for key in map(_storage, tensors) if key in standing)
            if self.found and func.overloadpacket.__name__ in DECOMPOSITIONS:
                shapes = func(*tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), args), **(kwargs or {}))
                return tree_map_only(torch.Tensor, lambda meta: torch.rand(meta.shape, dtype=meta.dtype), shapes)
            return func(*args, **(kwargs or {}))

    return Reads()


def _trained(model: PreTrainedModel, modules: Collection[str]) -> Iterator[str]:
    yield from (f"{module}.weight" for module in modules)
    for part in adapter_parts(model):
        if isinstance(part, SavedPart):
            plain = part.path.removeprefix(PREFIX)
            yield from (f"{plain}.{leaf}" for leaf, _ in part.module.named_parameters())
