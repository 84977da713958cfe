"""Where the documents of a checkpoint name tokens by their ids: the one list of these places, and what stands there under other ids.

A place is a path into a document, and the form in which ids stand there. Whatever names ids, reads them or renumbers them asks here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.checkpoint.tokenizer.renamed_places import DECODER, NAMING
from graftkit.checkpoint.tokenizer.vocabulary import Json

#: Id -> the id of the same token elsewhere, None where it is not there.
Move = Callable[[int], int | None]

#: Names of fields that hold the id of a token, or a list of such ids.
TOKEN = re.compile(
    r"(^|_)token_(id|index|idx|ids|indices)$|^(bos|eos|pad|unk|sep|cls|mask)_(id|index|idx)$"
    r"|^(im|image|video|audio|vision|slice|frame)_(start|end|newline|patch)_id$|^newline_id$"
)
#: Names that look like these; whether a token is meant cannot be told.
DOUBTFUL = re.compile(r"(^|_)(ids?|index|idx)$")

CONFIG, GENERATION, TOKENIZER, ADDED = "config.json", "generation_config.json", "tokenizer.json", "added_tokens.json"

#: Every document that names tokens by ids.
DOCUMENTS = (CONFIG, GENERATION, *NAMING, TOKENIZER, ADDED)


@dataclass(frozen=True, slots=True)
class Form:
    """How ids stand in a value. Where they are ``needed``, their tokens cannot go; elsewhere they go together with their tokens."""

    ids: Callable[[Json], Iterable[int]]
    moved: Callable[[Json, Move], Json]
    needed: bool = False


@dataclass(frozen=True, slots=True)
class IdPlace:
    """A value of a document that holds ids; ``path`` is empty where it is the whole document."""

    document: str
    path: tuple[str | int, ...]
    form: Form
    value: Json

    def __str__(self) -> str:
        """The place as messages name it."""
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return f"{self.document}: {steps.removeprefix('.')}" if steps else self.document

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids that stand there."""
        return tuple(self.form.ids(self.value))

    def moved(self, move: Move) -> Json:
        """The value under other ids."""
        return self.form.moved(self.value, move)


def id_places(documents: Mapping[str, Any], rows: int) -> Iterator[IdPlace]:
    """Yield each place where a document names tokens by ids, but for the vocabulary of the tokenizer's model.

    A part of a config with a ``vocab_size`` of its own, other than ``rows``, has another vocabulary, and is passed over.
    """
    for document in (CONFIG, GENERATION, *NAMING):
        yield from _in_config(document, documents.get(document), (), rows)
    for path, form, value in _in_tokenizer(documents.get(TOKENIZER)):
        yield IdPlace(TOKENIZER, path, form, value)
    if isinstance(documents.get(ADDED), dict):
        yield IdPlace(ADDED, (), BY_TOKEN, documents[ADDED])


def doubtful_places(documents: Mapping[str, Any]) -> Iterator[IdPlace]:
    """Yield each number of a config whose name may mean that it is the id of a token, or something else."""
    for document in (CONFIG, GENERATION):
        yield from _doubtful(document, documents.get(document), ())


def with_moved(documents: Mapping[str, Any], places: Iterable[IdPlace], move: Move) -> dict[str, Any]:
    """The documents in which the ids at ``places`` are others, each as ``move`` says; the rest of them is shared."""
    result: dict[str, Any] = {}
    for place in places:
        value = place.moved(move)
        if value != place.value:
            held = result.get(place.document, documents.get(place.document))
            result[place.document] = with_value(held, place.path, value)
    return result


def with_value(document: Json, path: tuple[str | int, ...], value: Json) -> Json:
    """A copy of ``document`` with another value at ``path``; mappings that are not there are made."""
    if not path:
        return value
    step, *rest = path
    if isinstance(document, list) and isinstance(step, int):
        return [*document[:step], with_value(document[step], tuple(rest), value), *document[step + 1 :]]
    inner = document if isinstance(document, dict) else {}
    return {**inner, step: with_value(inner.get(step), tuple(rest), value)}


def _in_config(document: str, value: Json, path: tuple[str | int, ...], rows: int) -> Iterator[IdPlace]:
    if not isinstance(value, dict):
        return
    if path and value.get("vocab_size", rows) != rows:
        return
    for key, item in value.items():
        form = _form(str(key), item)
        if form is not None:
            yield IdPlace(document, (*path, key), form, item)
        else:
            yield from _in_config(document, item, (*path, key), rows)


def _form(key: str, value: Json) -> Form | None:
    """The form of a field's value, by the field's name; None where it holds no ids."""
    if TOKEN.search(key):
        return IDS if _is_id(value) or (isinstance(value, list) and all(map(_is_id, value))) else None
    if key == DECODER and isinstance(value, dict):
        return BY_KEY
    form = GENERATION_FORMS.get(key)
    return form if form is not None and isinstance(value, dict | list) else None


def _in_tokenizer(document: Json) -> Iterator[tuple[tuple[str | int, ...], Form, Json]]:
    if not isinstance(document, dict):
        return
    if isinstance(document.get("added_tokens"), list):
        yield ("added_tokens",), ENTRIES, document["added_tokens"]
    padding = document.get("padding")
    if isinstance(padding, dict) and _is_id(padding.get("pad_id")):
        yield ("padding", "pad_id"), IDS, padding["pad_id"]
    yield from _in_frame(document.get("post_processor"), ("post_processor",))


def _in_frame(part: Json, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Form, Json]]:
    """Yield the places of a post-processor: the ids of a template's tokens, ``[token, id]`` of ``sep`` and ``cls``."""
    if not isinstance(part, dict):
        return
    inner = part.get("processors")
    for number, item in enumerate(inner if isinstance(inner, list) else ()):
        yield from _in_frame(item, (*path, "processors", number))
    for key in ("sep", "cls"):
        if isinstance(part.get(key), list) and len(part[key]) > 1:
            yield (*path, key, 1), IDS, part[key][1]
    special = part.get("special_tokens")
    for name, token in special.items() if isinstance(special, dict) else ():
        if isinstance(token, dict) and isinstance(token.get("ids"), list):
            yield (*path, "special_tokens", name, "ids"), IDS, token["ids"]


def _doubtful(document: str, value: Json, path: tuple[str | int, ...]) -> Iterator[IdPlace]:
    for key, item in value.items() if isinstance(value, dict) else ():
        if _is_id(item) and DOUBTFUL.search(str(key)) and _form(str(key), item) is None:
            yield IdPlace(document, (*path, key), IDS, item)
        else:
            yield from _doubtful(document, item, (*path, key))


def _is_id(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Json, move: Move) -> Json:
    """An id under its new number; whatever is none, or has no row, stays."""
    found = move(value) if _is_id(value) else None
    return value if found is None else found


def _numbers(value: Json) -> Iterator[int]:
    """Every id in nested lists."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif _is_id(value):
        yield value


def _moved_ids(value: Json, move: Move) -> Json:
    return [_number(item, move) for item in value] if isinstance(value, list) else _number(value, move)


def _all_there(value: Json, move: Move) -> bool:
    return all(move(index) is not None for index in _numbers(value))


def _moved_sequences(value: Json, move: Move) -> Json:
    """Nested lists of ids, without each sequence of which a token is gone."""
    if not isinstance(value, list):
        return _number(value, move)
    inner = [item for item in value if not isinstance(item, list) or _all_there(item, move) or _holds_lists(item)]
    return [_moved_sequences(item, move) for item in inner]


def _holds_lists(value: list[Any]) -> bool:
    return any(isinstance(item, list) for item in value)


def _moved_biases(value: Json, move: Move) -> Json:
    """``[[ids, bias], ...]`` without each sequence of which a token is gone."""
    if not isinstance(value, list):
        return value
    kept = [item for item in value if isinstance(item, list) and item and _all_there(item[0], move)]
    return [[_moved_ids(item[0], move), *item[1:]] for item in kept]


def _ids_of_biases(value: Json) -> Iterator[int]:
    for item in value if isinstance(value, list) else ():
        yield from _numbers(item[0] if isinstance(item, list) and item else None)


def _ids_of_positions(value: Json) -> Iterator[int]:
    """``[[position, id], ...]``; an id that is null is left to the model."""
    for item in value if isinstance(value, list) else ():
        yield from _numbers(item[1:] if isinstance(item, list) else None)


def _moved_positions(value: Json, move: Move) -> Json:
    pairs = value if isinstance(value, list) else []
    return [[item[0], *_moved_ids(item[1:], move)] if isinstance(item, list) and item else item for item in pairs]


def _values(value: Mapping[str, Any]) -> Iterator[int]:
    return (index for index in value.values() if _is_id(index))


def _moved_values(value: Mapping[str, Any], move: Move) -> Json:
    return {
        token: _number(index, move) for token, index in value.items() if not _is_id(index) or move(index) is not None
    }


def _moved_keys(value: Mapping[str, Any], move: Move) -> Json:
    numbers = {key: move(int(key)) if key.isdecimal() else None for key in value}
    return {
        key if numbers[key] is None else str(numbers[key]): item
        for key, item in value.items()
        if not key.isdecimal() or numbers[key] is not None
    }


def _moved_entries(value: Json, move: Move) -> Json:
    return [{**item, "id": found} for item in value if (found := move(item["id"])) is not None]


#: An id or a list of ids.
IDS = Form(_numbers, _moved_ids, needed=True)
SINGLE_IDS = Form(_numbers, lambda value, move: [found for item in value if (found := move(item)) is not None])
SEQUENCES = Form(_numbers, _moved_sequences)
BIASES = Form(_ids_of_biases, _moved_biases)
#: ``[[position, id], ...]``.
POSITIONS = Form(_ids_of_positions, _moved_positions, needed=True)
#: ``{token: id}``, ``{id: token}``, ``[{id: ..., ...}]``.
BY_TOKEN = Form(_values, _moved_values)
NEEDED_BY_TOKEN = Form(_values, _moved_values, needed=True)
BY_KEY = Form(lambda value: (int(key) for key in value if key.isdecimal()), _moved_keys)
ENTRIES = Form(lambda value: (item["id"] for item in value), _moved_entries)

#: Fields of other names, most of them of a generation config, with the form that they have.
GENERATION_FORMS: Mapping[str, Form] = {
    "suppress_tokens": SINGLE_IDS,
    "begin_suppress_tokens": SINGLE_IDS,
    "bad_words_ids": SEQUENCES,
    "force_words_ids": Form(_numbers, _moved_sequences, needed=True),
    "sequence_bias": BIASES,
    "forced_decoder_ids": POSITIONS,
    "lang_to_id": NEEDED_BY_TOKEN,
    "task_to_id": NEEDED_BY_TOKEN,
    "text_decoder_lang_to_code_id": NEEDED_BY_TOKEN,
    "vocabulary_map": BY_TOKEN,
}
