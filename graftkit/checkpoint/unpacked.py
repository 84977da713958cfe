"""Quantized weights as plain ones: each value exactly what codes and scales say, rounded once, some rows at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graftkit.checkpoint.computed import as_bytes
from graftkit.checkpoint.reading import read_rows, read_tensor, torch_dtype
from graftkit.checkpoint.rounding import round_once
from graftkit.checkpoint.tensors import FLOATING, LazyTensor, Rows, Streamed

if TYPE_CHECKING:
    from torch import Tensor

#: Values that are held in float32 at a time, unless one row of the first axis has more.
HELD = 1 << 20

#: What the bytes of an exponent are above the exponent (OCP Microscaling Formats, E8M0).
E8M0_BIAS = 127

#: The same of a float64, and how many bits its mantissa has.
FLOAT64_BIAS, FLOAT64_MANTISSA = 1023, 52

#: The magnitudes of the four bits of FP4 without their sign (OCP Microscaling Formats, E2M1).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def scaled_blocks(codes: LazyTensor, scales: LazyTensor, block: tuple[int, int], dtype: str) -> Streamed:
    """FP8 ``codes`` times the scale of their block of ``block`` rows and columns of a matrix, in ``dtype``.

    *Shape:* codes ``(..., rows, columns)``, scales ``(..., ⌈rows / block⌉, ⌈columns / block⌉)``, or one for all: the last blocks may be
    smaller.
    """
    width = math.prod(codes.shape[1:])
    return Streamed(dtype, codes.shape, max(HELD // width, 1), lambda: _scaling(codes, scales, block, dtype))


def _scaling(codes: LazyTensor, scales: LazyTensor, block: tuple[int, int], dtype: str) -> Rows:
    import torch

    *leading, height, width = codes.shape
    grid = (*leading, -(-height // block[0]), -(-width // block[1]))
    stored = _factors(read_tensor(scales), scales.dtype)
    factors = stored.view(grid) if stored.numel() > 1 else stored.flatten().expand(grid)
    column = torch.arange(width) // block[1]

    def rows(start: int, stop: int) -> memoryview:
        values = read_rows(codes, 0, start, stop).float().view(-1, *codes.shape[1:])
        if len(codes.shape) == 2:
            own = factors[torch.arange(start, stop) // block[0]]
        else:
            own = factors[start:stop][..., torch.arange(height) // block[0], :]
        return as_bytes(_product(values, own[..., column], dtype))

    return rows


def microscaled(blocks: LazyTensor, scales: LazyTensor, dtype: str) -> Streamed:
    """MXFP4 matrices of experts, each transposed as the class has it: two values in a byte, a power of two for each block.

    *Shape:* blocks ``(experts, outputs, groups, bytes)``, scales ``(experts, outputs, groups)``, the result
    ``(experts, groups * bytes * 2, outputs)``.
    """
    experts, outputs, groups, width = blocks.shape
    shape = (experts, groups * width * 2, outputs)
    return Streamed(dtype, shape, 1, lambda: _microscaling(blocks, scales, dtype))


def _microscaling(blocks: LazyTensor, scales: LazyTensor, dtype: str) -> Rows:
    import torch

    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    _, outputs, groups, _ = blocks.shape

    def rows(start: int, stop: int) -> memoryview:
        packed = read_rows(blocks, 0, start, stop).int().view(stop - start, outputs, groups, -1)
        codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
        factors = _factors(read_rows(scales, 0, start, stop), "F8_E8M0").view(stop - start, outputs, groups, 1)
        values = _product(table[codes], factors.expand(codes.shape), dtype)
        return as_bytes(values.flatten(-2).transpose(1, 2))

    return rows


def paired(codes: LazyTensor, scales: LazyTensor, whole: LazyTensor, dtype: str, *, divided: bool) -> Streamed:
    """NVFP4 ``codes`` times the FP8 scale of their group of inputs, times the scale of the ``whole`` or ``divided`` by it.

    The product has no more than 30 bits, so that float64 holds it. A quotient it does not, but none lies so near to the middle between
    two values of ``dtype``, without being on it, that rounding it to float64 first would make another of it.

    *Shape:* codes ``(outputs, inputs / 2)`` or, of experts, ``(experts, inputs / 2, outputs)``, the first of two values in the lower
    bits; scales the same with the groups of inputs; one for the whole.
    """
    first, pairs, *rest = codes.shape
    shape = (first, 2 * pairs, *rest)
    held = max(HELD // math.prod(shape[1:]), 1)
    return Streamed(dtype, shape, held, lambda: _pairing(codes, scales, whole, dtype, divided))


def _pairing(codes: LazyTensor, scales: LazyTensor, whole: LazyTensor, dtype: str, divided: bool) -> Rows:
    import torch

    table = torch.tensor([*E2M1, *(-value for value in E2M1)]).double()
    factor = read_tensor(whole).double().flatten()

    def rows(start: int, stop: int) -> memoryview:
        packed = read_rows(codes, 0, start, stop).int().view(-1, *codes.shape[1:])
        values = table[torch.stack((packed & 15, packed >> 4), dim=2).flatten(1, 2)]
        own = read_rows(scales, 0, start, stop).double().view(-1, *scales.shape[1:])
        exact = values.view(*own.shape[:2], -1, *own.shape[2:]) * own.unsqueeze(2)
        exact = exact / factor if divided else exact * factor
        return as_bytes(round_once(exact, torch_dtype(dtype)))

    return rows


def _product(codes: Tensor, factors: Tensor, dtype: str) -> Tensor:
    """The exact product of both, in float32, rounded once to ``dtype``.

    A product in float32 is rounded already. Rounding it to half the width again takes no other value than rounding the exact one,
    unless it lies on the middle between two: then the exact one says to which side it belongs.
    """
    import torch

    product = codes * factors
    if dtype == "F32":
        return product
    rounded = product.to(torch_dtype(dtype))
    middle = (product.view(torch.int32) & 0xFFFF) == 0x8000
    if middle.any():
        exact = codes[middle].double() * factors[middle].double()
        rounded[middle] = round_once(exact, rounded.dtype)
    return rounded


def _factors(stored: Tensor, dtype: str) -> Tensor:
    """Scales in float32: floating ones as they are, bytes as the exponents of powers of two, put into the bits of a float64."""
    import torch

    if dtype in FLOATING:
        return stored.float()
    exponents = stored.view(torch.uint8).long() - E8M0_BIAS
    return ((exponents + FLOAT64_BIAS) << FLOAT64_MANTISSA).view(torch.float64).float()
