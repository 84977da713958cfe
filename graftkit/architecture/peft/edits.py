"""What an adapter does to the weights of its base, one value for each weight. Names are those in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graftkit.checkpoint.tensors import LazyTensor

#: How ``B @ A`` lies in the weight: as it is, transposed (Conv1D, embeddings), or so for each of several experts.
Layout = Literal["linear", "transposed", "experts", "experts_transposed"]


@dataclass(frozen=True, slots=True)
class Factors:
    """``weight + scaling·B·A``; with ``magnitude``, its rows scaled to those norms (DoRA).

    *Shapes:* ``a`` ``(r, in)``, ``b`` ``(out, r)``, ``magnitude`` ``(out,)``; for experts ``(experts·r, in)`` and ``(out, r·experts)``.
    """

    weight: str
    a: LazyTensor
    b: LazyTensor
    rank: int
    scaling: float
    layout: Layout
    experts: int = 1
    magnitude: LazyTensor | None = None


@dataclass(frozen=True, slots=True)
class BiasShift:
    """``weight + scaling·values``, for a LoRA with biases."""

    weight: str
    values: LazyTensor
    scaling: float


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The rows ``rows`` of ``weight`` are ``values``."""

    weight: str
    rows: tuple[int, ...]
    values: LazyTensor


@dataclass(frozen=True, slots=True)
class Replaced:
    """``weight`` is ``values``. ``shared``: so are all weights that are tied to it."""

    weight: str
    values: LazyTensor
    shared: bool


Edit = Factors | BiasShift | TokenRows | Replaced
