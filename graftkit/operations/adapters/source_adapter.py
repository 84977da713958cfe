"""An adapter that others are combined with: opened, and held against the base."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftkit.architecture.accounting import account
from graftkit.architecture.peft.edits import BiasShift, Edit, Factors, Replaced, TokenRows
from graftkit.architecture.peft.replaced import replaced_tensors, without_base_values
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import Adapter, open_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import RecipeError, printable
from graftkit.operations.adapters.growth import edits_on
from graftkit.operations.adapters.values_beside import left_beside
from graftkit.recipe.combine_adapters import WeightedAdapter
from graftkit.verification.adapters.origin import Origin, find_origin
from graftkit.verification.adapters.record import read_record
from graftkit.verification.digests import checkpoint_digests


@dataclass(frozen=True, slots=True)
class SourceAdapter:
    """An adapter, what errors call it, what its updates are multiplied with, and what it does to each weight of the base.

    ``left`` are notes on files beside it that stay behind.
    """

    shown: str
    folder: Path
    weight: float
    adapter: Adapter
    edits: tuple[Edit, ...]
    left: tuple[str, ...]

    @property
    def factors(self) -> Mapping[str, Factors]:
        """The low-rank updates by weight."""
        return {edit.weight: edit for edit in self.edits if isinstance(edit, Factors)}

    @property
    def shifts(self) -> Mapping[str, BiasShift]:
        """What it adds to biases, by weight."""
        return {edit.weight: edit for edit in self.edits if isinstance(edit, BiasShift)}

    @property
    def values(self) -> Mapping[str, Replaced | TokenRows]:
        """What it brings in place of the base's, by the tensor's name in the file."""
        names = {id(tensor): name for name, tensor in self.adapter.tensors.items()}
        brought = (edit for edit in self.edits if isinstance(edit, Replaced | TokenRows))
        return {names.get(id(edit.values), edit.weight): edit for edit in brought}


def open_sources(specs: Sequence[WeightedAdapter], checkpoint: Checkpoint) -> tuple[SourceAdapter, ...]:
    """Open each and let peft put it on the base, from shapes alone.

    Raises:
        InputRejected: base and adapter do not fit, or trained values beside it would be lost.
        RecipeError: a name in ``leave`` fits nothing.
    """
    return tuple(_open(spec, place, checkpoint) for place, spec in enumerate(specs))


def _open(spec: WeightedAdapter, place: int, checkpoint: Checkpoint) -> SourceAdapter:
    adapter, shown = open_adapter(spec.path), printable(spec.path)
    folder = Path(spec.path).resolve()
    try:
        left = tuple(left_beside(folder, shown, spec.leave))
    except RecipeError as error:
        raise RecipeError(str(error), field=f"adapters.{place}.leave") from error
    edits = edits_on(build_skeleton(checkpoint.config), checkpoint, adapter, folder, shown)
    return SourceAdapter(shown, folder, spec.weight, adapter, without_base_values(edits, checkpoint), left)


def origins(sources: Sequence[SourceAdapter], checkpoint: Checkpoint, *, weights: bool) -> Iterator[Origin]:
    """Yield for each adapter whether the base is the one that it was made for; its weights are read only with ``weights``."""
    digests = functools.cache(lambda values: checkpoint_digests(checkpoint, weights=values))
    for source in sources:
        edits = source.edits
        yield find_origin(
            source.adapter.config,
            read_record(source.folder),
            checkpoint,
            digests,
            weights=weights,
            replaced=lambda edits=edits: replaced_tensors(checkpoint, account(checkpoint), edits),  # type: ignore[misc]
        )
