"""What torch itself makes of the parts of ZeRO 3: groups cut where weights end, the shares of the ranks joined without padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.distributed.partitioned import PACKAGE
from graftkit.checkpoint.pickled_file import load_archive
from graftkit.errors import InputRejected

if TYPE_CHECKING:
    from torch import Tensor

#: By the name that the training had for it: the name of the weight whose memory it is, and what makes its values.
Made = Mapping[str, tuple[str, Callable[[], "Tensor"]]]


def values_of_ranks(step: Path) -> Made:
    """Every weight and buffer in the folder ``step``; values are read when they are made.

    Raises:
        InputRejected: the parts are not those of one training.
    """
    models, optimizers = ([_load(path) for path in _files(step, kind)] for kind in ("model", "optim"))
    first = models[0]
    made = {
        name: (name, _frozen(models, name, shape)) for name, shape in (first.get("frozen_param_shapes") or {}).items()
    }
    shapes = [(name, shape) for group in first["param_shapes"] for name, shape in group.items()]
    cut = [_cut(one["optimizer_state_dict"]["fp32_flat_groups"], shapes, len(models)) for one in optimizers]
    for place, (name, shape) in enumerate(shapes):
        made[name] = (name, _joined([shares[place] for shares in cut], shape))
    for name in first.get("buffer_names") or ():
        if name in first["module"]:
            made[name] = (name, lambda value=first["module"][name]: value)  # type: ignore[misc]
    again = (first.get("shared_params") or {}).items()
    return made | {name: made[other] for name, other in again if other in made}


def _files(step: Path, kind: str) -> list[Path]:
    paths = step.glob(f"*zero_pp_rank_*_{kind}_states.pt")
    return sorted(paths, key=lambda path: int(path.name.partition("_rank_")[2].partition("_")[0]))


def _load(path: Path) -> Any:
    return load_archive(path, path.name, PACKAGE)


def _cut(groups: list[Tensor], shapes: list[tuple[str, Any]], ranks: int) -> list[Tensor]:
    """The share of each weight in the groups of one rank."""
    import torch

    sizes = [-(-math.prod(shape) // ranks) for _, shape in shapes]
    found: list[Tensor] = []
    for group in groups:
        own, held = list[int](), 0
        while held < group.numel() and len(found) + len(own) < len(sizes):
            own.append(sizes[len(found) + len(own)])
            held += own[-1]
        if held != group.numel():
            raise InputRejected("the groups of its optimizer do not end where a weight ends")
        found += torch.split(group, own)
    return found


def _joined(shares: list[Tensor], shape: Any) -> Callable[[], Tensor]:
    import torch

    return lambda: torch.cat(shares)[: math.prod(shape)].view(tuple(shape))


def _frozen(models: list[Any], name: str, shape: Any) -> Callable[[], Tensor]:
    return _joined([model["frozen_param_fragments"][name] for model in models], shape)
