"""The documents that operations may edit: JSON files and texts, parsed strictly, written as transformers does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.files import read_bounded
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from pathlib import Path

#: What operations may read and replace, by relative path; whatever else comes along does so byte for byte.
DOCUMENTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "lr_multipliers.json",
    "README.md",
)

#: The only document that may be large.
TOKENIZER = "tokenizer.json"

#: Largest document that is read, in bytes. Tokenizers of 262,144 tokens have some 35 MB; nothing else comes near 8 MiB.
MAX_DOCUMENT_BYTES = 8 * 2**20
MAX_TOKENIZER_BYTES = 256 * 2**20
#: A report holds a few hundred bytes for each tensor.
MAX_REPORT_BYTES = 512 * 2**20

_MAX_DEPTH = 64


class Documents(Mapping[str, Any]):
    """Documents by relative path; one that is not ``known`` is read when it is asked for, and then stays the identical object.

    The tokenizer of 128,000 tokens takes a tenth of a second and 40 MB, and an adapter made from headers does not need it.
    """

    def __init__(self, names: Iterable[str], known: Mapping[str, Any], read: Callable[[str], object]) -> None:
        self._names, self._values, self._read = dict.fromkeys(names), dict(known), read

    def __getitem__(self, name: str) -> Any:
        if name in self._names and name not in self._values:
            self._values.setdefault(name, self._read(name))
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def read_document(directory: Path, name: str) -> object:
    """Return the document ``name`` of ``directory``: the object of a JSON file, the text of any other.

    Raises:
        InputRejected: the file is too large, not UTF-8, no JSON object, nested too deeply, or holds a key twice.
        StorageFault: the file system failed.
    """
    limit = MAX_TOKENIZER_BYTES if name == TOKENIZER else MAX_DOCUMENT_BYTES
    raw = read_bounded(directory, name, limit)
    if not name.endswith(".json"):
        return _decode_text(raw, name)
    value = decode_json(raw, name)
    if not isinstance(value, dict):
        raise InputRejected(f"{printable(name)}: is not a JSON object")
    return value


def read_report(directory: Path, name: str) -> object:
    """Return the parsed value of a report of an earlier run.

    Raises:
        InputRejected: as :func:`read_document`, but for its size.
        StorageFault: the file system failed.
    """
    return decode_json(read_bounded(directory, name, MAX_REPORT_BYTES), name)


def decode_json(raw: bytes, name: str) -> object:
    """Return the value of the JSON text ``raw``; NaN and Infinity, which transformers writes, are kept.

    Raises:
        InputRejected: it is not UTF-8, not JSON, nested too deeply, or holds a key twice.
    """
    shown = printable(name)
    text = _decode_text(raw, name)
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise InputRejected(f"{shown}:{error.lineno}:{error.colno}: is not JSON: {printable(error.msg)}") from error
    except ValueError as error:
        raise InputRejected(f"{shown}: {printable(error)}") from error
    except RecursionError as error:
        raise InputRejected(f"{shown}: is nested more than {_MAX_DEPTH} levels deep") from error
    if _depth(value) > _MAX_DEPTH:
        raise InputRejected(f"{shown}: is nested more than {_MAX_DEPTH} levels deep")
    return value


def encode_document(value: object) -> bytes:
    """Return the bytes of a document: a text as it is, any other value as JSON in transformers' layout."""
    if isinstance(value, str):
        return value.encode("utf-8")
    return encode_json(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def encode_json(text: str) -> bytes:
    """Return JSON text in UTF-8; half a surrogate pair, which no file can hold, as the escape that JSON has for it."""
    return text.encode("utf-8", "backslashreplace")


def _decode_text(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputRejected(f"{printable(name)}: is not UTF-8 text at byte {error.start}") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key '{twice}' stands twice in one object")
    return found


def _depth(value: object) -> int:
    """Return the depth of nested containers, level by level: the value may be as deep as the parser goes."""
    depth, level = 0, [value]
    while level := [part for part in level if isinstance(part, (dict, list))]:
        depth += 1
        level = list(chain.from_iterable(part.values() if isinstance(part, dict) else part for part in level))
    return depth
