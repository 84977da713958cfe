"""Seeds by name: what is sampled for one tensor or row depends on nothing but its own name and the recipe's seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the recipe's seed, the operation's place, and what names the tensor or row."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """A generator on the CPU, seeded by :func:`seed_of`: the same bits on every device, in any order, for any shard."""
    import torch

    return torch.Generator().manual_seed(seed_of(*parts))
