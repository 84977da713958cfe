"""extend_positions: longer sequences, by more rows of a learned table of positions, or by what config.json says of rotary ones."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.fresh_values import own_values
from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.positions import Positions, find_positions
from graftkit.architecture.rope import with_rope
from graftkit.architecture.skeleton import build_skeleton, with_values
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations.base import Context, Outcome
from graftkit.operations.weights.position_rows import longer_table
from graftkit.recipe import ExtendPositions
from graftkit.recipe.extend_positions import Interpolate, Repeat
from graftkit.verification.positions import PositionsCheck
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER_CONFIG, LENGTH = "tokenizer_config.json", "model_max_length"


def extend_positions(spec: ExtendPositions, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Give learned tables of positions more rows, or config.json what it says of longer sequences.

    Raises:
        RecipeError: there are as many positions already, or a field is for the other kind of positions.
        InputRejected: the positions of the class are neither, or a table cannot be told.
    """
    structure = account(checkpoint)
    positions = find_positions(checkpoint, structure)
    new, old = spec.max_position_embeddings, positions.count
    if new <= old:
        what = "already" if new == old else "positions, and none is taken away"
        raise RecipeError(f"the model has {old:,} {what}", field="max_position_embeddings")
    _check_fields(spec, positions, structure)
    config = with_values(checkpoint.config, positions.paths, new)
    if spec.rope_parameters:
        config = with_rope(config, positions.paths[0][:-1], spec.rope_parameters, old)
    init, seed = spec.init or Repeat.model_construct(), (context.seed, context.place)
    by_class = functools.partial(_rows_of_class, config)
    tables = {
        table.disk: longer_table(
            checkpoint.tensors[table.disk], table, new - old, by_class if table.computed else init, seed
        )
        for table in positions.tables
    }
    stale = [name for name in structure.unloaded if _numbers_positions(checkpoint.tensors[name], positions)]
    tokenizer, said = _longer_texts(checkpoint, positions, new)
    changes: dict[str, LazyTensor | None] = {**tables, **dict.fromkeys(stale)}
    result = checkpoint.with_tensors(changes).with_documents({"config.json": config, **tokenizer})
    rows = next((table.rows for table in positions.tables), 0)
    grown = IndexMap.grown(rows, rows + new - old, range(rows, rows + new - old)) if rows else None
    changed = bool(spec.rope_parameters) or isinstance(spec.init, Interpolate)
    if stale:
        said.append(f"left out, since the class numbers positions itself: {few(stale)}")
    return Outcome(
        result,
        _promise(spec, positions),
        (*_notes(spec, positions, config, init.scheme), *said),
        correspondence=Correspondence(positions=grown),
        scope=Scope.MEASURE if changed else Scope.EVERYTHING,
        checks=(PositionsCheck(positions.tokens(new), new - old, positions.tables),),
    )


def _rows_of_class(config: Mapping[str, Any], name: str) -> Tensor:
    """The table that a new model of the class has.

    Raises:
        InputRejected: the class does not say.
    """
    skeleton = build_skeleton(config)
    found = own_values(skeleton, name, 0)
    if found is None:
        raise InputRejected(f"{skeleton.architecture}: does not say what {printable(name)!r} holds in a new model")
    return found


def _check_fields(spec: ExtendPositions, positions: Positions, structure: Structure) -> None:
    """Refuse a field that is for the other kind of positions."""
    name = structure.skeleton.architecture
    if positions.tables and spec.rope_parameters:
        raise RecipeError(
            f"{name} has a table of positions ({few([t.disk for t in positions.tables])})", field="rope_parameters"
        )
    if spec.init is not None and not any(not table.computed for table in positions.tables):
        what = "computes its table of positions" if positions.tables else "stores no table of positions"
        raise RecipeError(f"has no meaning: {name} {what}", field="init")
    text: Any = structure.skeleton.model.config.get_text_config(decoder=True)
    if spec.rope_parameters and not getattr(text, "rope_parameters", None):
        raise RecipeError(f"{name} has no rotary positions", field="rope_parameters")


def _numbers_positions(tensor: LazyTensor, positions: Positions) -> bool:
    """Whether a tensor that the class does not load lists the positions, as BERT checkpoints of old do."""
    return tensor.dtype not in FLOATING and tensor.shape[-1:] in (
        (positions.count,),
        (positions.count + positions.reserved,),
    )


def _longer_texts(checkpoint: Checkpoint, positions: Positions, new: int) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer's own bound, where it is the model's."""
    document: Mapping[str, Any] = checkpoint.documents.get(TOKENIZER_CONFIG, {})
    lengths = {positions.count: new, positions.tokens(positions.count): positions.tokens(new)}
    found = document.get(LENGTH)
    if not isinstance(found, int) or found not in lengths:
        said = f"{LENGTH} of the tokenizer is {found:,} and stays" if isinstance(found, int) and found < new else ""
        return {}, [said] if said else []
    longer = lengths[found]
    return {TOKENIZER_CONFIG: {**document, LENGTH: longer}}, [
        f"{LENGTH} of the tokenizer was {found:,} and is {longer:,} now"
    ]


def _promise(spec: ExtendPositions, positions: Positions) -> Promise:
    if spec.rope_parameters:
        kind = spec.rope_parameters.get("rope_type", "other angles")
        return Promise(PromiseClass.INTENTIONAL, f"rotary positions are scaled by {printable(str(kind))}", EVERY_INPUT)
    if isinstance(spec.init, Interpolate):
        return Promise(PromiseClass.INTENTIONAL, "the table of positions is stretched over the new length", EVERY_INPUT)
    old = plural(positions.tokens(positions.count), "token")
    return Promise(PromiseClass.BITWISE, "hidden states and logits over every id", f"sequences of at most {old}")


def _notes(spec: ExtendPositions, positions: Positions, config: Mapping[str, Any], scheme: str) -> Iterator[str]:
    old, new = positions.count, spec.max_position_embeddings
    longest, before = positions.tokens(new), positions.tokens(old)
    yield f"sequences of up to {longest:,} tokens, before {before:,}"
    for table in positions.tables:
        kept = f", {plural(table.reserved, 'row')} of it being no position" if table.reserved else ""
        how = "as its class makes them" if table.computed else f"by {scheme}"
        yield f"{printable(table.disk)}: {plural(new - old, 'row')} more {how}{kept}"
    place: Any = config
    for key in positions.paths[0][:-1]:
        place = place[key]
    given = place.get("rope_parameters") or place.get("rope_scaling")
    if spec.rope_parameters and isinstance(given, Mapping):
        yield f"rotary positions: {', '.join(f'{key} {value}' for key, value in given.items())}"
    elif not positions.tables:
        yield "nothing is stored for a position: beyond the old length the model does what it does there, untrained"
