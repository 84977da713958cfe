"""From a scheme as a recipe writes it to a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from graftkit.errors import RecipeError
from graftkit.initializers import constants, distributions, matched, mup, orthogonal, variance_scaling

if TYPE_CHECKING:
    import torch

    from graftkit.initializers.fans import Layout
    from graftkit.recipe.weight_schemes import WeightScheme

Value = TypeVar("Value")

#: The standard deviation of a config without an initializer_range, as in BERT and GPT-2.
STD = 0.02


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a scheme may need of the model: found by whoever knows the model.

    Attributes:
        std: the config's initializer_range.
        layers: the final number of layers, for ``depth_scaled``.
        width: the hidden size, for ``mup``.
        readout: whether the tensor makes the model's output from its last hidden state, for ``mup``.
        norms: row norms of the trained tensor beside, for ``matched``; see :func:`graftkit.initializers.matched.row_norms`.
    """

    std: float = STD
    layers: int | None = None
    width: int | None = None
    readout: bool = False
    norms: torch.Tensor | None = None


def make(
    scheme: WeightScheme, shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, generator: torch.Generator,
    facts: ModelFacts = ModelFacts(),
) -> torch.Tensor:  # fmt: skip
    """Make a tensor on the CPU: sampled in float32 from ``generator``, cast once to ``dtype``.

    Raises:
        RecipeError: the scheme needs fans and the tensor is a vector, or it needs what ``facts`` does not give.
    """
    try:
        return MAKERS[scheme.scheme](scheme, _Target(shape, dtype, layout, generator, facts))
    except ValueError as error:
        raise RecipeError(f"init: {scheme.scheme}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Target:
    """The arguments of :func:`make`: those of fan-free schemes (``free``), and of schemes with fans (``mapped``)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout
    generator: torch.Generator
    facts: ModelFacts

    @property
    def free(self) -> tuple[tuple[int, ...], torch.dtype, torch.Generator]:
        return self.shape, self.dtype, self.generator

    @property
    def mapped(self) -> tuple[tuple[int, ...], torch.dtype, Layout, torch.Generator]:
        return self.shape, self.dtype, self.layout, self.generator

    def std(self, scheme: Any) -> float:
        return self.facts.std if scheme.std is None else float(scheme.std)

    def layers(self) -> int:
        return _given(self.facts.layers, "the number of layers is not known here")

    def width_ratio(self, scheme: Any) -> float:
        return _given(self.facts.width, "the model's width is not known here") / float(scheme.base_width)

    def norms(self) -> torch.Tensor:
        return _given(self.facts.norms, "there are no trained rows beside this tensor")


def _given(value: Value | None, problem: str) -> Value:
    if value is None:
        raise ValueError(problem)
    return value


def _kaiming(scheme: Any) -> Mapping[str, Any]:
    return {"mode": scheme.mode, "nonlinearity": scheme.nonlinearity, "a": scheme.a}


MAKERS: dict[str, Callable[[Any, _Target], torch.Tensor]] = {
    "zeros": lambda _, t: constants.zeros(t.shape, t.dtype),
    "ones": lambda _, t: constants.ones(t.shape, t.dtype),
    "constant": lambda s, t: constants.constant(t.shape, t.dtype, s.value),
    "normal": lambda s, t: distributions.normal(*t.free, mean=s.mean, std=t.std(s)),
    "trunc_normal": lambda s, t: distributions.trunc_normal(*t.free, mean=s.mean, std=t.std(s), cut=s.cut),
    "uniform": lambda s, t: distributions.uniform(*t.free, a=s.a, b=s.b),
    "depth_scaled": lambda s, t: distributions.depth_scaled(*t.free, std=t.std(s), layers=t.layers()),
    "xavier_uniform": lambda s, t: variance_scaling.xavier_uniform(*t.mapped, gain=s.gain),
    "xavier_normal": lambda s, t: variance_scaling.xavier_normal(*t.mapped, gain=s.gain),
    "kaiming_uniform": lambda s, t: variance_scaling.kaiming_uniform(*t.mapped, **_kaiming(s)),
    "kaiming_normal": lambda s, t: variance_scaling.kaiming_normal(*t.mapped, **_kaiming(s)),
    "lecun_normal": lambda _, t: variance_scaling.lecun_normal(*t.mapped),
    "orthogonal": lambda s, t: orthogonal.orthogonal(*t.mapped, gain=s.gain),
    "mup": lambda s, t: mup.mup(*t.mapped, width_ratio=t.width_ratio(s), std=s.std, readout=t.facts.readout),
    "matched": lambda _, t: matched.matched(*t.mapped, norms=t.norms()),
}
