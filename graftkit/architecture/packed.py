"""Which tensors of a quantized checkpoint hold packed weights: found by where they lie, whatever packed them.

Every format stores the weights of a module below the module's own name: under the name of the weight in another dtype or shape, or
under other names, and beside it what tells how it is read, such as scales. So no table of formats is needed here, and no library
that unpacks them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graftkit.architecture.names import TensorNames
from graftkit.checkpoint.tensors import FLOATING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from graftkit.checkpoint.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class Packed:
    """What is packed of a checkpoint.

    ``tensors`` gives by name on disk the path in memory of the module whose weights a tensor is part of, ``weights`` are the names
    in memory of what these modules have and what is not stored as it is.
    """

    tensors: Mapping[str, str] = field(default_factory=dict)
    weights: frozenset[str] = frozenset()


NOTHING_PACKED = Packed()


def find_packed(model: PreTrainedModel, names: TensorNames, tensors: Mapping[str, LazyTensor]) -> Packed:
    """What is packed of ``tensors``, whose ``names`` are those that the loader of ``model`` gives them.

    A module is packed where some of its own weights is not stored as it is and something that the class does not know lies beside
    it: a strange dtype alone tells nobody how it is read.
    """
    state = model.state_dict()
    modules = {name.rpartition(".")[0] for name in state}
    plain, strange = set[str](), dict[str, str]()
    for disk, (name, converted) in names.items():
        tensor, wanted = tensors[disk], state.get(name)
        fits = wanted is not None and wanted.is_floating_point() == (tensor.dtype in FLOATING)
        if wanted is not None and fits and (converted or tuple(wanted.shape) == tensor.shape):
            plain.add(name)
        elif (module := _module_above(name, modules)) is not None:
            strange[disk] = module
    told = {module for disk, module in strange.items() if names[disk].name not in state}
    lacking = {name for name in state if name not in plain and name.rpartition(".")[0] in told}
    packed = {name.rpartition(".")[0] for name in lacking}
    return Packed({disk: module for disk, module in strange.items() if module in packed}, frozenset(lacking))


def _module_above(name: str, modules: Collection[str]) -> str | None:
    """The longest of the paths ``modules`` that a name in memory lies below; None where it lies below none."""
    steps = name.split(".")
    paths = (".".join(steps[:count]) for count in range(len(steps) - 1, 0, -1))
    return next((path for path in paths if path in modules), None)
