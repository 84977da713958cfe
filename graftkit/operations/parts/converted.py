"""A tensor as the whole's loader makes it of those on disk, where the part's own loader does not make it so."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from graftkit.architecture.accounting import Structure
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.reading import torch_dtype
from graftkit.checkpoint.tensors import Computed, Stored


def converted_tensors(checkpoint: Checkpoint, whole: Structure, names: Iterable[str]) -> dict[str, Computed]:
    """The tensors of these names in the whole's memory, those left out that are not stored, or stored in several dtypes.

    No value is rounded: a conversion of the loader turns, joins or cuts.
    """
    from graftkit.running.paging.origin import origins

    wanted = set(names)
    stored = {disk: tensor for disk, tensor in checkpoint.tensors.items() if isinstance(tensor, Stored)}
    found: dict[str, Computed] = {}
    for name in sorted(wanted):
        disks = whole.memory.on_disk(name)
        dtypes = {stored[disk].dtype for disk in disks if disk in stored}
        if len(dtypes) != 1 or not set(disks) <= stored.keys():
            continue
        (dtype,) = dtypes
        model = copy.deepcopy(whole.skeleton.model).to(torch_dtype(dtype))
        origin = origins(model, {disk: stored[disk] for disk in disks})[name]
        found[name] = Computed(
            dtype,
            whole.skeleton.shapes[name],
            lambda name=name, origin=origin: as_bytes(origin.read()[name]),  # type: ignore[misc]
        )
    return found
