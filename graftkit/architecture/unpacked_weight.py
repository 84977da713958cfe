"""One weight of a quantized checkpoint once it is plain."""

from __future__ import annotations

from dataclasses import dataclass

from graftkit.checkpoint.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class Unpacked:
    """One weight: its ``name`` on disk, its values, and the names of what holds them packed."""

    name: str
    tensor: LazyTensor
    parts: tuple[str, ...]
