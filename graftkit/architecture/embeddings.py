"""The input and the output embedding of a model: what transformers' getters name, or what their sub-models' do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    #: A module with a matrix of one row for each id, mostly of one of these classes.
    Table = nn.Embedding | nn.Linear

INPUT, OUTPUT = "get_input_embeddings", "get_output_embeddings"


def embedding_of(model: PreTrainedModel, getter: str) -> Table | None:
    """The module that ``getter`` (:data:`INPUT` or :data:`OUTPUT`) of ``model`` returns if it has a table, else None.

    Where the model's own getter names no table, its sub-models are asked: for the input, every one whose config gives the
    table's rows as its ``vocab_size``, and all must name the same; for the output, those that share the input table.
    """
    own = _table(call_getter(model, getter))
    if own is not None:
        return own
    found = list(_of_sub_models(model, getter))
    return found[0] if found and all(item is found[0] for item in found) else None


def call_getter(model: PreTrainedModel, getter: str) -> Any:
    """Whatever ``getter`` returns, None where it is not implemented."""
    try:
        return getattr(model, getter)()
    except (NotImplementedError, AttributeError):
        return None


def _table(module: Any) -> Table | None:
    weight = getattr(module, "weight", None)
    return module if weight is not None and weight.ndim == 2 else None


def _of_sub_models(model: PreTrainedModel, getter: str) -> Iterator[Table]:
    from transformers import PreTrainedModel

    shared = embedding_of(model, INPUT) if getter == OUTPUT else None
    for part in model.modules():
        if part is model or not isinstance(part, PreTrainedModel):
            continue
        table = _table(call_getter(part, INPUT))
        if table is None:
            continue
        if getter == OUTPUT:
            output = _table(call_getter(part, OUTPUT)) if table is shared else None
            if output is not None:
                yield output
        elif getattr(part.config, "vocab_size", None) == table.weight.shape[0]:
            yield table
