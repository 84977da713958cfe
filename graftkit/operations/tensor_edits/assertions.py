"""The step that changes nothing: shapes and dtypes are looked at when planning, values before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import TAGS, chunks, equal_bytes, torch_dtype
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import RecipeError, printable
from graftkit.operations.tensor_edits.selection import fitting, nearest, select
from graftkit.operations.tensor_edits.stepped import Place, Stepped
from graftkit.recipe.tensor_assertions import Assertion, Between
from graftkit.verification.structural import EXPONENTS, first_not_finite


def assert_that(step: Assertion, checkpoint: Checkpoint, _: Place) -> Stepped:
    """Look at shapes and dtypes, and return what looks at values.

    Raises:
        RecipeError: an assertion does not hold, or speaks of a tensor that is not there.
    """
    _check_headers(step, checkpoint)
    tensors = checkpoint.tensors
    equal = list(dict.fromkeys(_stored(name, checkpoint) for name in step.equal))
    finite = list(select(step.finite, tensors, "finite"))
    norms = {
        name: between
        for expression, between in (step.norm or {}).items()
        for name in fitting(expression, tensors, "norm")
    }
    _check_norms_possible(norms, checkpoint)

    def check() -> None:
        _check_equal(equal, checkpoint)
        if bad := next((name for name in finite if _holds_nonfinite(tensors[name])), None):
            raise RecipeError(f"{printable(bad)!r} holds NaN or infinity", field="finite")
        for name, between in norms.items():
            _check_norm(name, norm(tensors[name]), between)

    return Stepped(checkpoint, check=check)


def _check_headers(step: Assertion, checkpoint: Checkpoint) -> None:
    for expression, shape in (step.shape or {}).items():
        for name in fitting(expression, checkpoint.tensors, "shape"):
            _check_shape(name, checkpoint.tensors[name].shape, shape)
    for expression, dtype in (step.dtype or {}).items():
        for name in fitting(expression, checkpoint.tensors, "dtype"):
            if (found := checkpoint.tensors[name].dtype) != TAGS[dtype]:
                raise RecipeError(f"{printable(name)!r} is of dtype {found}, not {dtype}", field="dtype")


def _check_equal(names: Sequence[str], checkpoint: Checkpoint) -> None:
    for name in names[1:]:
        if not equal_bytes(checkpoint.tensors[names[0]], checkpoint.tensors[name]):
            raise RecipeError(f"{printable(names[0])!r} and {printable(name)!r} differ", field="equal")


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    fits = len(found) == len(wanted) and all(size in (here, -1) for here, size in zip(found, wanted, strict=True))
    if not fits:
        raise RecipeError(f"{printable(name)!r} has shape {list(found)}, not {list(wanted)}", field="shape")


def _stored(name: str, checkpoint: Checkpoint) -> str:
    """The name of the tensor that holds what ``name`` is loaded with: itself, or the one that it is tied to.

    Raises:
        RecipeError: there is no such tensor.
    """
    if name in checkpoint.tensors:
        return name
    tied = build_skeleton(checkpoint.config).tied
    pairs = [*tied.items(), *((origin, target) for target, origin in tied.items())]
    held = [other for one, other in pairs if one == name and other in checkpoint.tensors]
    if not held:
        raise RecipeError(f"there is no tensor {printable(name)!r}; {nearest(name, checkpoint.tensors)}", field="equal")
    return held[0]


def _holds_nonfinite(tensor: LazyTensor) -> bool:
    import numpy as np

    if tensor.dtype not in EXPONENTS:
        return False
    return any(first_not_finite(tensor.dtype, np.frombuffer(piece, np.uint8)) is not None for piece in chunks(tensor))


def _check_norms_possible(norms: dict[str, Between], checkpoint: Checkpoint) -> None:
    for name in norms:
        if (dtype := checkpoint.tensors[name].dtype) not in FLOATING:
            raise RecipeError(f"{printable(name)!r} is of dtype {dtype}, which has no norm here", field="norm")


def norm(tensor: LazyTensor) -> float:
    """The root of the sum of the squares of all values, in float64."""
    return math.sqrt(sum(_squares(tensor)))


def _squares(tensor: LazyTensor) -> Iterator[float]:
    import torch

    for piece in chunks(tensor):
        yield float(torch.frombuffer(bytearray(piece), dtype=torch_dtype(tensor.dtype)).double().square().sum())


def _check_norm(name: str, found: float, between: Between) -> None:
    low = -math.inf if between.min is None else between.min
    high = math.inf if between.max is None else between.max
    if not low <= found <= high:
        wanted = f"between {low:g} and {high:g}" if between.min is not None and between.max is not None else ""
        wanted = wanted or (f"at least {low:g}" if between.max is None else f"at most {high:g}")
        raise RecipeError(f"{printable(name)!r} has a norm of {found:.6g}, not {wanted}", field="norm")
