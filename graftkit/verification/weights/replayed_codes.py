"""What codes and scales say, decoded from their bits in float64 and with the scale of each value found by its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from graftkit.checkpoint.reading import read_rows, read_tensor
from graftkit.checkpoint.tensors import FLOATING, LazyTensor

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Array = np.ndarray[Any, Any]

#: Bits of exponent and of mantissa of each FP8 dtype; E4M3 has no infinity (OCP 8-bit Floating Point Specification).
FP8_BITS = {"F8_E4M3": (4, 3), "F8_E5M2": (5, 2)}


class Replay(Protocol):
    """What the values of one weight are."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def exact(self, start: int, stop: int) -> Array:
        """Those from ``start`` to ``stop`` of the first axis, in float64. *Shape:* ``(stop - start, the rest)``."""


@dataclass(frozen=True, slots=True)
class Fp8Replay:
    """FP8 ``codes`` with ``scales`` for blocks of so many rows and columns."""

    codes: LazyTensor
    scales: LazyTensor
    block: tuple[int, int]

    @classmethod
    def of(cls, codes: LazyTensor, scales: LazyTensor, said: Mapping[str, Any]) -> Self:
        """With the blocks of a quantization config; one that names none has one scale for the whole matrix."""
        rows, columns = said.get("weight_block_size") or codes.shape[-2:]
        return cls(codes, scales, (rows, columns))

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the codes."""
        return self.codes.shape

    def exact(self, start: int, stop: int) -> Array:
        """See :class:`Replay`."""
        import numpy as np

        values = _fp8_values(self.codes.dtype)[_bytes(self.codes, start, stop)].reshape(stop - start, *self.shape[1:])
        *leading, rows, columns = self.shape
        grid = (math.prod(leading), -(-rows // self.block[0]), -(-columns // self.block[1]))
        scales = _scale_values(self.scales)
        scales = scales.reshape(grid) if scales.size > 1 else np.broadcast_to(scales, grid)
        matrices, row = (
            (np.arange(start, stop), np.arange(rows)) if leading else (np.zeros(1, int), np.arange(start, stop))
        )
        own = scales[np.ix_(matrices, row // self.block[0], np.arange(columns) // self.block[1])]
        found: Array = (values * own.reshape(values.shape)).reshape(stop - start, -1)
        return found


@dataclass(frozen=True, slots=True)
class Fp4Replay:
    """MXFP4 ``codes`` ``(experts, outputs, groups, bytes)`` with ``scales``; the values are ``(experts, inputs, outputs)``."""

    codes: LazyTensor
    scales: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Experts, inputs, outputs."""
        experts, outputs, groups, width = self.codes.shape
        return experts, groups * width * 2, outputs

    def exact(self, start: int, stop: int) -> Array:
        """See :class:`Replay`."""
        import numpy as np

        _, outputs, groups, width = self.codes.shape
        packed = _bytes(self.codes, start, stop).reshape(stop - start, outputs, groups, width)
        scales = _bytes(self.scales, start, stop).reshape(stop - start, outputs, groups)
        place = np.arange(groups * width * 2)
        group, within = place // (2 * width), place % (2 * width)
        code = packed[:, :, group, within // 2] >> (4 * (within % 2)).astype(np.uint8) & 15
        values = np.ldexp(_fp4_values(code), scales[:, :, group].astype(int) - 127)
        found: Array = values.transpose(0, 2, 1).reshape(stop - start, -1)
        return found


@dataclass(frozen=True, slots=True)
class PairReplay:
    """NVFP4 ``codes`` with ``scales`` for groups of inputs, times that of the ``whole`` or ``divided`` by it.

    *Shape:* the codes of a matrix are ``(outputs, bytes)``, those of experts ``(experts, bytes, outputs)``.
    """

    codes: LazyTensor
    scales: LazyTensor
    whole: LazyTensor
    divided: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the codes, with two values for each byte."""
        first, width, *rest = self.codes.shape
        return first, 2 * width, *rest

    def exact(self, start: int, stop: int) -> Array:
        """See :class:`Replay`. A quotient is rounded to float64, which takes it over no middle between two values of float32."""
        import numpy as np

        first, place = stop - start, np.arange(self.shape[1])
        packed, scales = (
            _bytes(one, start, stop).reshape(first, one.shape[1], -1) for one in (self.codes, self.scales)
        )
        code = packed[:, place // 2] >> (4 * (place % 2)).astype(np.uint8)[:, None] & 15
        whole = float(_scale_values(self.whole).reshape(-1)[0])
        values = _fp4_values(code) * _fp8_values("F8_E4M3")[scales][:, place // 16]
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = values / whole if self.divided else values * whole
        return found.reshape(first, -1)


def _fp4_values(code: Array) -> Array:
    """What codes of FP4 are: a sign, two bits of exponent, one of mantissa."""
    import numpy as np

    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    size = np.where(exponent == 0, mantissa / 2, np.ldexp(1 + mantissa / 2, exponent.astype(int) - 1))
    found: Array = np.where(sign == 1, -size, size)
    return found


def _fp8_values(dtype: str) -> Array:
    """The values of all codes of an FP8 dtype, by their bits."""
    import numpy as np

    exponents, mantissas = FP8_BITS[dtype]
    code = np.arange(256)
    exponent, mantissa = (code >> mantissas) & (2**exponents - 1), (code & (2**mantissas - 1)) / 2**mantissas
    bias = 2 ** (exponents - 1) - 1
    size = np.where(exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, exponent - bias))
    top = exponent == 2**exponents - 1
    never = top & (mantissa == 7 / 8) if dtype == "F8_E4M3" else top & (mantissa > 0)
    size = np.where(top & (mantissa == 0) & (dtype == "F8_E5M2"), np.inf, np.where(never, np.nan, size))
    found: Array = np.where(code >> 7, -size, size)
    return found


def _scale_values(scales: LazyTensor) -> Array:
    """All scales in float64; bytes are exponents of two."""
    import numpy as np

    values = read_tensor(scales)
    if scales.dtype in FLOATING:
        return np.asarray(values.double().numpy())
    found: Array = np.ldexp(1.0, _raw(values).astype(int) - 127)
    return found


def _bytes(tensor: LazyTensor, start: int, stop: int) -> Array:
    return _raw(read_rows(tensor, 0, start, stop))


def _raw(values: Tensor) -> Array:
    import numpy as np
    import torch

    return np.asarray(values.contiguous().view(torch.uint8).numpy())
