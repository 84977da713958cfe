"""Whether two tensors are equal, seen by their bits first: that is several times as fast for narrow dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def equal(old: Tensor, new: Tensor) -> bool:
    """What ``old.equal(new)`` says: NaN equals nothing, 0.0 equals -0.0. False where shapes or dtypes differ.

    Equal bits are equal values but for NaN, and no sum hides one: NaN plus anything is NaN. Whatever that
    leaves open (other bits, a sum that is NaN since infinities cancel) is decided by value.
    """
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    return (same_bits(old, new) and not bool(old.sum().isnan())) or bool(old.equal(new))


def same_bits(old: Tensor, new: Tensor) -> bool:
    """Whether both hold the same bits in the same shape and dtype: so does NaN beside itself, and 0.0 beside -0.0 does not."""
    import torch

    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if _in_words(old) and _in_words(new):
        return torch.equal(old.view(-1).view(torch.int64), new.view(-1).view(torch.int64))
    same_width = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(old.element_size())
    return same_width is not None and torch.equal(old.view(same_width), new.view(same_width))


def _in_words(tensor: Tensor) -> bool:
    """Whether its memory is one run of eight bytes after another."""
    start = tensor.storage_offset() * tensor.element_size()
    return bool(tensor.is_contiguous() and start % 8 == 0 == tensor.nbytes % 8)
