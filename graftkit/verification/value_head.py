"""A value head beside a checkpoint that nobody vouches for: whether trainers would load it, and whether it is finite."""

from __future__ import annotations

from collections.abc import Iterator

from graftkit.architecture.last_hidden import last_hidden_width
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.value_head import FILE, value_head_faults
from graftkit.errors import printable
from graftkit.verification.digests import tensor_digests
from graftkit.verification.structural import not_finite


def value_head_findings(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what is wrong with a checkpoint's value head, where it has one."""
    if not checkpoint.value_head:
        return
    width = last_hidden_width(build_skeleton(checkpoint.config))
    yield from (f"{FILE} {fault}" for fault in value_head_faults(checkpoint.value_head, width))
    for name in not_finite(checkpoint.value_head):
        yield f"{FILE}: tensor {printable(name)!r} holds NaN or infinity"


def new_value_head_findings(old: Checkpoint, new: Checkpoint) -> Iterator[str]:
    """The same of a value head that is not the ``old`` checkpoint's."""
    if tensor_digests(old.value_head) != tensor_digests(new.value_head):
        yield from (f"structure: {finding}" for finding in value_head_findings(new))
