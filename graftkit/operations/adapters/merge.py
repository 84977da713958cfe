"""The arithmetic of an adapter: its edits applied to one weight at a time, when the weight is written.

In float32 and float64 the expressions, and so the bits, are those of peft's ``merge``. In half precision the sum is formed in
float32 and rounded once; peft rounds the product of embeddings and experts beforehand.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeGuard

from graftkit.architecture.fused import Slice
from graftkit.architecture.peft.edits import BiasShift, Edit, Factors, Replaced, TokenRows
from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.held import Original, is_original
from graftkit.checkpoint.reading import read_rows, read_tensor, torch_dtype
from graftkit.checkpoint.tensors import Computed, LazyTensor, Rows, Streamed, patch_rows
from graftkit.errors import InputRejected, printable
from graftkit.initializers.one_thread import OneThread

if TYPE_CHECKING:
    from torch import Tensor

#: How many weights are computed at a time: the threads that write and check would otherwise hold one each.
AT_ONCE = threading.BoundedSemaphore(2)

#: Elements that are widened to float32 at a time: they stay in the caches, and their memory is used again at once.
WIDENED = 1 << 16

#: Bytes of a half precision weight that are read, folded into and written at a time.
BLOCK = 4 << 20


def edited(base: LazyTensor, edits: tuple[Edit, ...], part: Slice | None = None) -> LazyTensor:
    """``base`` with ``edits`` applied in their order, in its own dtype; ``part`` says what of the edited weight it is."""
    rows = edits[0]
    if len(edits) == 1 and isinstance(rows, TokenRows) and is_original(base):
        return _with_rows(base, rows)
    if len(edits) == 1 and isinstance(rows, Factors) and part is None and _streams(base, rows):
        edit = rows
        return folded(
            base,
            lambda: (read_tensor(edit.a), read_tensor(edit.b)),
            edit.scaling,
            transposed=edit.layout == "transposed",
        )
    return Computed(base.dtype, base.shape, lambda: _produce(base, edits, part))


def _streams(base: LazyTensor, edit: Factors) -> TypeGuard[Original]:
    """Whether rows can be folded one at a time; not where the result must equal peft's product of the whole to the last bit."""
    plain = edit.magnitude is None and edit.layout in {"linear", "transposed"}
    return plain and is_original(base) and base.dtype in ("BF16", "F16")


def folded(
    base: Original, factors: Callable[[], tuple[Tensor, Tensor]], scaling: float, *, transposed: bool
) -> Streamed:
    """``base + scaling·B·A``, some rows at a time; ``factors`` gives A and B in float32.

    The sum is formed in float32 for half precision, else in float64, and rounded once.
    """
    count = max(BLOCK // (base.nbytes // max(base.shape[0], 1)), 1)
    return Streamed(base.dtype, base.shape, count, lambda: _folding(base, factors(), scaling, transposed=transposed))


def _folding(base: Original, factors: tuple[Tensor, Tensor], scaling: float, *, transposed: bool) -> Rows:
    """What reads rows of ``base`` and folds the factors into them."""
    import torch

    wide = torch.float32 if base.dtype in ("BF16", "F16") else torch.float64
    a, b = (factor.to(wide) for factor in factors)
    left, right = (a.T, b.T) if transposed else (b, a)
    step = max(WIDENED // right.shape[1], 1)
    buffer = torch.empty(step, right.shape[1], dtype=wide)

    def rows(start: int, stop: int) -> memoryview:
        with OneThread(), torch.inference_mode():
            block = read_rows(base, 0, start, stop)
            for part, factor in zip(torch.split(block, step), torch.split(left[start:stop], step), strict=True):
                held = buffer[: len(part)].copy_(part)
                part.copy_(torch.addmm(held, factor, right, alpha=scaling, out=held))
            return as_bytes(block)

    return rows


def _with_rows(base: Original, edit: TokenRows) -> LazyTensor:
    order = sorted(range(len(edit.rows)), key=edit.rows.__getitem__)

    def produce() -> memoryview:
        return as_bytes(read_tensor(edit.values)[order].to(torch_dtype(base.dtype)))

    return patch_rows(base, axis=0, rows=tuple(sorted(edit.rows)), size=base.shape[0], produce=produce)


def _produce(base: LazyTensor, edits: Iterable[Edit], part: Slice | None) -> memoryview:
    import torch

    with AT_ONCE, torch.inference_mode():
        weight: Tensor | None = None
        for edit in edits:
            if isinstance(edit, Replaced):
                weight = read_tensor(edit.values).to(torch_dtype(base.dtype))
            else:
                weight = _apply(read_tensor(base) if weight is None else weight, edit, part)
        return as_bytes(read_tensor(base) if weight is None else weight)


def _apply(weight: Tensor, edit: Edit, part: Slice | None) -> Tensor:
    import torch

    match edit:
        case TokenRows():
            return weight.index_copy(0, torch.tensor(edit.rows), read_tensor(edit.values).to(weight.dtype))
        case BiasShift():
            weight += _widened(edit.values, weight) * edit.scaling
            return weight
        case Factors(magnitude=None) if edit.layout in {"linear", "transposed"}:
            return _fold(weight, _widened(edit.a, weight), _widened(edit.b, weight), edit)
        case Factors(magnitude=None):
            return _fold_experts(weight, edit, part)
        case Factors():
            return _fold_dora(weight, edit)
    raise TypeError(type(edit).__name__)


def _widened(tensor: LazyTensor, weight: Tensor) -> Tensor:
    """A factor in the dtype that the sum is formed in: float32, or float64 for a float64 weight."""
    import torch

    return read_tensor(tensor).to(torch.float64 if weight.dtype == torch.float64 else torch.float32)


def _product(a: Tensor, b: Tensor, *, transposed: bool) -> Tensor:
    product = b @ a
    return product.T if transposed else product


def _fold(weight: Tensor, a: Tensor, b: Tensor, edit: Factors) -> Tensor:
    """``weight`` ``(out, in)``, or ``(in, out)`` where transposed, plus ``scaling·b·a``, in place."""
    transposed = edit.layout.endswith("transposed")
    if weight.dtype == a.dtype:
        weight += _product(a, b, transposed=transposed).mul_(edit.scaling)
        return weight
    exact = math.frexp(edit.scaling)[0] == 0.5  # a power of two scales a factor as exactly as the product
    if exact:
        b = b * edit.scaling
    step = max(WIDENED // weight.shape[1], 1)
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        left, right = (a[:, rows], b) if transposed else (a, b[rows])
        product = _product(left, right, transposed=transposed)
        weight[rows].add_(product if exact else product.mul_(edit.scaling))
    return weight


def _fold_experts(weight: Tensor, edit: Factors, part: Slice | None) -> Tensor:
    """All experts of ``weight`` ``(experts, ., .)``, or the slice of one expert that ``weight`` is."""
    a, b = _widened(edit.a, weight), _widened(edit.b, weight)
    a = a.reshape(edit.experts, -1, a.shape[-1])
    b = b.reshape(b.shape[0], -1, edit.experts)
    if part is None:
        for expert in range(edit.experts):
            _fold(weight[expert], a[expert], b[..., expert], edit)
        return weight
    product = _product(a[part.expert], b[..., part.expert], transposed=edit.layout.endswith("transposed"))
    weight += product.narrow(part.axis, part.start, weight.shape[part.axis]).mul_(edit.scaling)
    return weight


def _fold_dora(weight: Tensor, edit: Factors) -> Tensor:
    import torch

    if edit.magnitude is None:
        raise ValueError("DoRA has a magnitude")
    transposed = edit.layout == "transposed"
    delta = _product(_widened(edit.a, weight), _widened(edit.b, weight), transposed=transposed).mul_(edit.scaling)
    total = weight + delta
    norm = torch.linalg.norm(total.T if transposed else total, dim=1)
    if zero := int((norm == 0).sum()):
        raise InputRejected(
            f"merge_adapter: {printable(edit.weight)}: {zero} output(s) have norm zero; DoRA divides by it, and gives NaN in peft too"
        )
    factor = _widened(edit.magnitude, weight) / norm
    return total.mul(factor.view(1, -1) if transposed else factor.view(-1, 1)).to(weight.dtype)
