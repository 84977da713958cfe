"""How the weights of a module are initialised: each scheme a word, or a mapping with fields.

Formulas stand with the code that computes them, in :mod:`graftkit.initializers`; the names are those of ``torch.nn.init``.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftkit.recipe.choice import OneOf
from graftkit.recipe.schemes import SchemeSpec, Zeros
from graftkit.recipe_file.problems import Path

Std = Annotated[
    float | None,
    Field(gt=0, description="The standard deviation; null means the config's initializer_range, or 0.02 without one."),
]
Gain = Annotated[float, Field(gt=0, description="Multiplies the standard deviation.")]

Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


class Ones(SchemeSpec):
    """Ones."""

    scheme: Literal["ones"] = "ones"


class Constant(SchemeSpec):
    """Every element the same value."""

    scheme: Literal["constant"] = "constant"
    value: Annotated[float, Field(description="The value.")]


class WeightNormal(SchemeSpec):
    """Normal."""

    scheme: Literal["normal"] = "normal"
    mean: Annotated[float, Field(description="The mean.")] = 0.0
    std: Std = None


class TruncNormal(SchemeSpec):
    """Normal, redrawn where it lies further than ``cut`` standard deviations from the mean (BERT)."""

    scheme: Literal["trunc_normal"] = "trunc_normal"
    mean: Annotated[float, Field(description="The mean.")] = 0.0
    std: Std = None
    cut: Annotated[float, Field(gt=0, description="Where the tails are cut, in standard deviations.")] = 2.0


class Uniform(SchemeSpec):
    """Uniform between ``a`` and ``b``."""

    scheme: Literal["uniform"] = "uniform"
    a: Annotated[float, Field(description="The lower end.")]
    b: Annotated[float, Field(description="The upper end.")]

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse an interval that is empty."""
        a, b = data.get("a"), data.get("b")
        if isinstance(a, int | float) and isinstance(b, int | float) and a >= b:
            yield ("b",), f"must be above a, which is {a}, found {b}"


class XavierUniform(SchemeSpec):
    """Uniform with variance gain²·2/(fan_in + fan_out) (Glorot 2010)."""

    scheme: Literal["xavier_uniform"] = "xavier_uniform"
    gain: Gain = 1.0


class XavierNormal(SchemeSpec):
    """Normal with variance gain²·2/(fan_in + fan_out) (Glorot 2010)."""

    scheme: Literal["xavier_normal"] = "xavier_normal"
    gain: Gain = 1.0


class Kaiming(SchemeSpec):
    """Fields of both Kaiming schemes, with the defaults of ``torch.nn.init``."""

    mode: Annotated[
        Literal["fan_in", "fan_out"], Field(description="Keep the variance of signals, or that of gradients.")
    ] = "fan_in"
    nonlinearity: Annotated[Nonlinearity, Field(description="What follows the layer.")] = "leaky_relu"
    a: Annotated[float, Field(ge=0, description="Negative slope of leaky_relu; 0 is ReLU.")] = 0.0

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse a slope for what has none."""
        if "a" in data and data.get("nonlinearity", "leaky_relu") != "leaky_relu":
            yield ("a",), "has a meaning for nonlinearity: leaky_relu only"

    def plain(self) -> object:
        """Return the fields, without a slope where it has no meaning, or the bare word where all are defaults."""
        written = self.plain_fields()
        if self.nonlinearity != "leaky_relu":
            del written["a"]
        return written


class KaimingUniform(Kaiming):
    """Uniform with variance gain²/fan (He 2015); ``a: 2.23606797749979`` is the default of torch.nn.Linear."""

    scheme: Literal["kaiming_uniform"] = "kaiming_uniform"


class KaimingNormal(Kaiming):
    """Normal with variance gain²/fan (He 2015)."""

    scheme: Literal["kaiming_normal"] = "kaiming_normal"


class LecunNormal(SchemeSpec):
    """Normal with variance 1/fan_in (LeCun 1998)."""

    scheme: Literal["lecun_normal"] = "lecun_normal"


class Orthogonal(SchemeSpec):
    """A random orthogonal map times ``gain`` (Saxe 2014)."""

    scheme: Literal["orthogonal"] = "orthogonal"
    gain: Gain = 1.0


class DepthScaled(SchemeSpec):
    """Normal with standard deviation std/√(2L), L the final number of layers, for what writes to the residual stream."""

    scheme: Literal["depth_scaled"] = "depth_scaled"
    std: Std = None


class Mup(SchemeSpec):
    """Variance of the maximal update parametrisation, with learning-rate multipliers written beside the model (Yang 2022)."""

    scheme: Literal["mup"] = "mup"
    base_width: Annotated[int, Field(ge=1, description="The width of the model whose learning rate is known.")]
    std: Annotated[
        float | None, Field(gt=0, description="Standard deviation at the base width; null means variance 1/fan_in.")
    ] = None


class Matched(SchemeSpec):
    """Random directions with the norms of the trained rows beside."""

    scheme: Literal["matched"] = "matched"


class Lsuv(SchemeSpec):
    """Orthogonal, then divided by the standard deviation of its own outputs on texts until that is one (Mishkin 2016)."""

    scheme: Literal["lsuv"] = "lsuv"


#: What a label projection shares with every other matrix.
SharedScheme = (
    Ones
    | Constant
    | TruncNormal
    | Uniform
    | XavierUniform
    | XavierNormal
    | KaimingUniform
    | KaimingNormal
    | LecunNormal
    | Orthogonal
    | DepthScaled
    | Mup
    | Matched
)

WeightScheme = Annotated[Zeros | WeightNormal | SharedScheme, OneOf("scheme", "scheme", words=True)]

#: For modules that are new: data cannot decide what is put in the place of trained weights.
NewModuleScheme = Annotated[Zeros | WeightNormal | SharedScheme | Lsuv, OneOf("scheme", "scheme", words=True)]


def is_zero(scheme: object) -> bool:
    """Whether a scheme, of weights or of a head, makes nothing but zeros."""
    name = getattr(scheme, "scheme", None)
    return name == "zeros" or (isinstance(scheme, Constant) and scheme.value == 0)
