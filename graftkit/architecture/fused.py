"""Weights that transformers fuses when it loads them, such as the experts of a mixture: which part each stored tensor is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, printable


@dataclass(frozen=True, slots=True)
class Slice:
    """A stored matrix is rows (``axis`` 0) or columns (1) of one expert's matrix in the fused weight, from ``start`` on."""

    expert: int
    axis: int
    start: int


def slices(
    skeleton: Skeleton, weight: str, stored: Iterable[str], tensors: Mapping[str, LazyTensor]
) -> dict[str, Slice]:
    """Name on disk -> its part of ``weight``, as the loader's own conversion puts them together.

    Raises:
        InputRejected: the conversion is another than stacking experts and joining their matrices.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(skeleton.model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state, prefix = skeleton.model.state_dict(), skeleton.model.base_model_prefix
    by_pattern: dict[str, list[str]] = {}
    for name in sorted(stored, key=dot_natural_key):
        _, pattern = rename_source_key(name, renamings, converters, prefix, state)
        by_pattern.setdefault(pattern, []).append(name)
    converter = next((c for c in converters if set(by_pattern) <= set(c.source_patterns)), None)
    axis = _joined_axis(converter.operations) if converter else None
    if converter is None or axis is None:
        raise InputRejected(
            f"{printable(weight)}: is put together from {len(tensors)} stored tensors in a way that cannot be undone"
            " for one of them; save the base once with transformers' save_original_format=False"
        )
    found: dict[str, Slice] = {}
    start = 0
    for pattern in converter.source_patterns:
        names = by_pattern.get(pattern, [])
        found |= {name: Slice(expert, axis, start) for expert, name in enumerate(names)}
        start += tensors[names[0]].shape[axis] if names else 0
    return found


def _joined_axis(operations: list[object]) -> int | None:
    """The axis along which matrices of one expert are joined; None for a conversion that is not understood."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    match operations:
        case [MergeModulelist(dim=0)]:
            return 0
        case [MergeModulelist(dim=0), Concatenate(dim=(1 | 2) as dim)]:
            return int(dim) - 1
    return None
