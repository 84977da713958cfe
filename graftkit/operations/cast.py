"""cast: every floating tensor in another dtype, rounded to nearest once, or widened without a change of value."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from graftkit.checkpoint.cast import Look
from graftkit.checkpoint.cast import cast as cast_tensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import DTYPES, TAGS
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations.base import Context, Outcome
from graftkit.operations.weights.dtype import config_in_dtype
from graftkit.operations.weights.patterns import matching
from graftkit.recipe import Cast
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope
from graftkit.verification.weights.recast import RecastCheck, holds

if TYPE_CHECKING:
    from torch import Tensor


def cast(spec: Cast, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Give every floating tensor but those of ``spec.keep`` the dtype, and let config.json name it.

    Raises:
        RecipeError: a pattern matches no tensor, or every tensor that is left has the dtype already.
        InputRejected: a tensor has eight bits and fewer.
    """
    dtype = TAGS[spec.dtype]
    if narrow := [name for name, tensor in checkpoint.tensors.items() if tensor.dtype.startswith("F8")]:
        raise InputRejected(
            f"{checkpoint.name}: {few(narrow)} hold values of eight bits, which mean nothing without their scales"
        )
    kept = matching(spec.keep, {name: (name,) for name in checkpoint.tensors}, "keep", "tensor") if spec.keep else []
    chosen = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if tensor.dtype in FLOATING and tensor.dtype != dtype and name not in kept
    }
    if not chosen:
        left = " that is not kept" if kept else ""
        raise RecipeError(f"every floating tensor{left} is {spec.dtype} already", field="dtype")
    made = {name: cast_tensor(tensor, dtype, _refusing(name, spec.dtype)) for name, tensor in chosen.items()}
    result = checkpoint.with_tensors(made).with_documents(
        {"config.json": config_in_dtype(checkpoint.config, spec.dtype)}
    )
    exact = all(holds(dtype, tensor.dtype) for tensor in chosen.values())
    scope = functools.reduce(operator.or_, (outcome.scope for outcome in context.earlier), Scope.EVERYTHING)
    return Outcome(
        result,
        _promise(spec.dtype, exact=exact),
        tuple(_notes(spec, chosen, result, [name for name in kept if checkpoint.tensors[name].dtype in FLOATING])),
        scope=Scope.EVERYTHING if exact else Scope.MEASURE,
        checks=(RecastCheck(chosen, {name: made[name] for name in chosen}, spec.dtype, exact=exact, earlier_scope=scope),),
    )  # fmt: skip


def _refusing(name: str, dtype: str) -> Look:
    """What refuses a finite value that becomes infinite."""

    def look(before: Tensor, after: Tensor) -> None:
        import torch

        if not after.isinf().any():
            return
        beyond = before[after.isinf() & before.isfinite()]
        if beyond.numel():
            most = torch.finfo(after.dtype).max
            raise InputRejected(
                f"tensor {printable(name)!r} holds {float(beyond.abs().max()):.6g}, beyond the largest {dtype}, {most:.6g};"
                " take bfloat16, which reaches further"
            )

    return look


def _promise(dtype: str, *, exact: bool) -> Promise:
    if exact:
        return Promise(
            PromiseClass.BITWISE,
            f"every stored value, and all outputs when it is loaded in the dtype that it had, not in {dtype}",
            EVERY_INPUT,
        )
    return Promise(
        PromiseClass.ROUNDED,
        f"every stored value is the nearest {dtype}; outputs up to what {dtype} itself rounds",
        EVERY_INPUT,
    )


def _notes(spec: Cast, chosen: Mapping[str, LazyTensor], result: Checkpoint, kept: list[str]) -> Iterator[str]:
    for tag in sorted({tensor.dtype for tensor in chosen.values()}):
        count = sum(tensor.dtype == tag for tensor in chosen.values())
        yield f"{plural(count, 'tensor')} from {DTYPES[tag]} to {spec.dtype}"
    before, after = (sum(found[name].nbytes for name in chosen) for found in (chosen, result.tensors))
    yield f"their bytes: {before:,} before, {after:,} after"
    if kept:
        yield (
            f"{plural(len(kept), 'tensor')} kept as stored: {few(kept)}; transformers loads them in {spec.dtype} all the same, which"
            " config.json names, but for those that its class holds in float32"
        )
