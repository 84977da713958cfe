"""The trained rows whose norms ``matched`` gives to the rows of a new head."""

from __future__ import annotations

from collections.abc import Mapping

from graftkit.architecture.accounting import Structure
from graftkit.architecture.embeddings import OUTPUT
from graftkit.architecture.head import Head
from graftkit.architecture.parameters import layout_of
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import RecipeError, printable
from graftkit.recipe import ReplaceHead
from graftkit.recipe.weight_schemes import Matched


def find_trained_rows(
    spec: ReplaceHead, head: Head, checkpoint: Checkpoint, structure: Structure
) -> Mapping[str, LazyTensor]:
    """The trained matrix for each new one that the recipe gives to ``matched``, by the new one's name in memory.

    That is the old head's of the same name and width; for a label projection also the output embedding, where its width fits.

    Raises:
        RecipeError: there is none.
    """
    skeleton = structure.skeleton
    names = structure.memory
    old = {
        name: checkpoint.tensors[disk]
        for name in names.disk
        if (disk := names.stored_as(name)) is not None and disk not in structure.packed.tensors
    }
    outputs = sorted(skeleton.weight_names(OUTPUT))
    tables = [old.get(name) for output in outputs for name in (output, skeleton.tied.get(output, output))]
    schemes = {"projection": spec.init, "inner": spec.inner_init}
    found: dict[str, LazyTensor] = {}
    for tensor in head.tensors:
        if not isinstance(schemes.get(tensor.part), Matched) or layout_of(head.skeleton, tensor.name) is None:
            continue
        candidates = [old.get(tensor.name), *(tables if tensor.part == "projection" else ())]
        fitting = [one for one in candidates if one is not None and one.shape[1:] == tensor.shape[1:]]
        if not fitting:
            raise RecipeError(
                f"matched: {checkpoint.name} has no trained rows beside {printable(tensor.name)!r}:"
                " neither an old head of that name and width, nor an output embedding of that width"
            )
        found[tensor.name] = fitting[0]
    return found
