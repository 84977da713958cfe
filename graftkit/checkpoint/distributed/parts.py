"""Files that the weights of a sharded training are put into, since none of its own files holds a weight whole."""

from __future__ import annotations

from collections.abc import Mapping

from graftkit.checkpoint.tensors import LazyTensor

#: Bytes of a file of the output, unless one tensor has more: what transformers long wrote by default.
FILE_BYTES = 5_000_000_000

#: What such a file is called here, until it is written.
PART = ".sharded-part"


def in_parts(tensors: Mapping[str, LazyTensor]) -> dict[str, tuple[str, ...]]:
    """The names of the tensors by part, of at most :data:`FILE_BYTES` or of one tensor."""
    parts: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        if parts[-1] and held + tensor.nbytes > FILE_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += tensor.nbytes
    return {f"{place + 1:05}-of-{len(parts):05}{PART}": tuple(names) for place, names in enumerate(parts)}
