"""An adapter that somebody has prepared: whether its own files and its base are still those that it was made as and for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graftkit.architecture.peft.config_fields import with_defaults
from graftkit.checkpoint.adapter import CONFIG, WEIGHTS, Adapter
from graftkit.checkpoint.reading import chunks
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import few, printable
from graftkit.verification.adapters.origin import Origin
from graftkit.verification.adapters.record import AdapterRecord
from graftkit.verification.digests import tensor_digests
from graftkit.verification.structural import first_not_finite


@dataclass(frozen=True, slots=True)
class PreparedAdapter:
    """An adapter as it lies on disk, the report of the run that made it, and what is known of its base."""

    adapter: Adapter
    record: AdapterRecord | None
    origin: Origin

    def changes(self) -> Iterator[str]:
        """Yield how config and tensors are not those that were reported, and where a value is not finite."""
        if self.record is not None:
            yield from _changed(self.record, self.adapter)
        yield from _not_finite(self.adapter)

    def other_base(self) -> Iterator[str]:
        """Yield how the base is another one than it was prepared for, as far as files tell."""
        yield from (f"adapter: {sentence}" for sentence in self.origin.different)


def _changed(known: AdapterRecord, adapter: Adapter) -> Iterator[str]:
    """Yield how config and tensors are no longer as they were reported, value by value."""
    before, config = with_defaults(known.config), with_defaults(adapter.config)
    changed = [
        f"{name} is {config.get(name)!r}, was {before.get(name)!r}"
        for name in sorted({*before, *config})
        if config.get(name) != before.get(name)
    ]
    if changed:
        yield f"adapter: {CONFIG} is not the reported one: {printable('; '.join(changed[:3]))}"
    digests = tensor_digests(adapter.tensors)
    tensors = {name: (tensor.dtype, tensor.shape, digests[name]) for name, tensor in adapter.tensors.items()}
    if tensors != known.tensors:
        names = {*known.tensors, *tensors}
        unlike = [name for name in names if known.tensors.get(name) != tensors.get(name)]
        yield f"adapter: {WEIGHTS} is not the reported one: {few(unlike)}"


def _not_finite(adapter: Adapter) -> Iterator[str]:
    """Yield a sentence where a tensor of the adapter holds NaN or infinity."""
    broken = [name for name, tensor in adapter.tensors.items() if any(_pieces_not_finite(tensor))]
    if broken:
        yield f"adapter: {WEIGHTS} holds NaN or infinity, in {few(broken)}: its training has diverged"


def _pieces_not_finite(tensor: LazyTensor) -> Iterator[bool]:
    import numpy as np

    for piece in chunks(tensor):
        yield first_not_finite(tensor.dtype, np.frombuffer(piece, np.uint8)) is not None
