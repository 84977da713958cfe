"""Digests of a base and of an adapter, so that later somebody can tell whether these are still the ones.

They are of values, not of files: a copy in other shards, or with its JSON spelled otherwise, has the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import chunks
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.verification.documents import DESCRIBING

#: Tensors that are hashed at a time.
READERS = 2


@dataclass(frozen=True, slots=True)
class BaseDigests:
    """SHA-256 of the config's values, of names, dtypes and shapes of all tensors, and of each tensor; {} where not read."""

    config: str
    tensors: str
    weights: Mapping[str, str]


def tensor_digests(tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor by name, a piece at a time."""
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _digest(tensor: LazyTensor) -> str:
    found = hashlib.sha256()
    for piece in chunks(tensor):
        found.update(piece)
    return found.hexdigest()


def checkpoint_digests(base: Checkpoint, *, weights: bool) -> BaseDigests:
    """Digest a checkpoint, which may be planned only; its weights are read or computed only when ``weights`` is set."""
    values = {name: value for name, value in base.config.items() if name not in DESCRIBING}
    lines = sorted(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in base.tensors.items())
    config, tensors = (
        hashlib.sha256(text.encode()).hexdigest() for text in (json.dumps(values, sort_keys=True), "\n".join(lines))
    )
    return BaseDigests(config, tensors, tensor_digests(base.tensors) if weights else {})
