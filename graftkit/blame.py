"""Whether what went in is to blame where a result does not verify."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from graftkit.checkpoint.adapter import open_adapter
from graftkit.checkpoint.stamps import Stamps, require_unchanged, stamps_of
from graftkit.checkpoint.weights_on_hub import is_on_hub
from graftkit.errors import InputRejected, VerificationFailed, printable
from graftkit.planned import Plan
from graftkit.verification.structural import holds_not_finite, not_finite


def stamps_before(planned: Plan) -> Stamps:
    """The stamps of the source's files when it was opened, and of weights that were downloaded since."""
    return {**stamps_of(planned.source.directory), **planned.source.stamps}


@contextlib.contextmanager
def blaming_inputs(planned: Plan, stamps: Stamps) -> Iterator[None]:
    """Where something inside does not verify, say so of what went in, if that changed meanwhile or could not have verified.

    Raises:
        StorageFault: the source was changed.
        InputRejected: see :func:`blame_inputs`.
    """
    try:
        yield
    except VerificationFailed as error:
        require_unchanged(planned.source.directory, stamps)
        blame_inputs(planned, error)
        raise


def blame_inputs(planned: Plan, error: VerificationFailed) -> None:
    """Where what went in holds NaN or infinity, nothing that comes out can verify, and that is not the result's fault.

    Raises:
        InputRejected: a tensor of the base or of an adapter is not finite.
    """
    for name, tensor in (item for outcome in planned.outcomes for item in outcome.unpacked.items()):
        if holds_not_finite(tensor):
            raise InputRejected(
                f"{printable(planned.source.name)}: tensor {printable(name)!r}: its codes and scales say NaN or infinity, or more than"
                f" {tensor.dtype} holds, so that nothing that is made of it can be verified; repair it"
            ) from error
    if planned.recipe.allow_nonfinite:
        return
    inputs = {planned.source.name: planned.source.all_tensors}
    for spec in planned.recipe.operations:
        if adapter := getattr(spec, "adapter", None):
            inputs[adapter] = open_adapter(adapter).tensors
    for where, tensors in inputs.items():
        read = {name: tensor for name, tensor in tensors.items() if not is_on_hub(tensor)}
        if bad := next(not_finite(read), None):
            raise InputRejected(
                f"{printable(where)}: tensor {printable(bad)!r} holds NaN or infinity, so that nothing that is made of it"
                " can be verified; repair it, or set allow_nonfinite: true"
            ) from error
