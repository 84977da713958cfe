"""Digests of a base and of an adapter, so that later somebody can tell whether these are still the ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from graftkit.checkpoint.checkpoint import Checkpoint

#: Files that are hashed at a time.
READERS = 2


@dataclass(frozen=True, slots=True)
class BaseDigests:
    """SHA-256 of config.json, of names, dtypes and shapes of all tensors, and of each weight file; {} where not read."""

    config: str
    tensors: str
    weights: Mapping[str, str]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_digests(directory: Path, *, weights: bool) -> BaseDigests:
    """Digest a checkpoint; its weight files are read only when ``weights`` is set.

    Raises:
        InputRejected: it cannot be opened.
    """
    base = Checkpoint.open(str(directory))
    lines = sorted(f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in base.tensors.items())
    shards: dict[str, str] = {}
    if weights:
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            shards = dict(zip(base.shards, pool.map(file_digest, map(base.path_of, base.shards)), strict=True))
    return BaseDigests(
        file_digest(base.path_of("config.json")), hashlib.sha256("\n".join(lines).encode()).hexdigest(), shards
    )


def available_memory() -> int:
    """Bytes that can be taken without swapping, as the kernel estimates them."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
