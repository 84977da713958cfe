"""Token ids in every document of a checkpoint, those included that only a config class's own defaults name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.skeleton import build_config
from graftkit.checkpoint.tokenizer.files import read_tokenizer
from graftkit.checkpoint.tokenizer.id_places import CONFIG, TOKENIZER, IdPlace, Move, id_places, with_moved, with_value
from graftkit.checkpoint.tokenizer.renamed_places import NAMING, without_special
from graftkit.checkpoint.tokenizer.renumbering import renumbered_model


def named_ids(documents: Mapping[str, Any], rows: int) -> Iterator[tuple[int, IdPlace]]:
    """Yield each id below ``rows`` whose token cannot go, with the place that names it."""
    loaded = {CONFIG: build_config(documents[CONFIG]).to_dict()}
    for place in (*id_places(documents, rows), *id_places(loaded, rows)):
        if place.form.needed:
            yield from ((index, place) for index in place.ids if index < rows)


def renumbered(documents: Mapping[str, Any], ids: IndexMap) -> dict[str, Any]:
    """The documents that change where ids become those that ``ids`` has for them, and tokens without one are gone."""
    move = dict(zip(ids.kept, ids.places, strict=True)).get
    result = with_moved(documents, id_places(documents, ids.source), move)
    config = documents.get(CONFIG)
    if isinstance(config, dict):
        moved = _with_defaults(config, result.get(CONFIG, config), ids.source, move)
        result |= {CONFIG: moved} if moved != config else {}
    tokenizer = result.get(TOKENIZER, documents.get(TOKENIZER))
    if isinstance(tokenizer, dict):
        model = renumbered_model(tokenizer["model"], move)
        result |= {TOKENIZER: {**tokenizer, "model": model}} if model != tokenizer["model"] else {}
        tokens = read_tokenizer({TOKENIZER: documents[TOKENIZER]}).tokens
        gone = {token for index, token in tokens.items() if move(index) is None}
        for name in NAMING:
            held = result.get(name, documents.get(name))
            if isinstance(held, dict) and (without := without_special(held, gone)) != held:
                result[name] = without
    return result


def _with_defaults(old: Mapping[str, Any], new: dict[str, Any], rows: int, move: Move) -> dict[str, Any]:
    """``new`` with the ids that ``old`` left to its class, where these are other ones now."""
    before, after = build_config(old).to_dict(), build_config(new).to_dict()
    for place in id_places({CONFIG: before}, rows):
        wanted = place.moved(move)
        if _at(after, place.path) != wanted:
            new = with_value(new, place.path, wanted)
    return new


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step] if isinstance(value, dict) and step in value else None
    return value
