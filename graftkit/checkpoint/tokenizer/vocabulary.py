"""The parts of tokenizer.json that say which token has which id."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: A value of a JSON document, as ``json.loads`` returns it.
Json: TypeAlias = Any

#: No tokenizer has an id near this; one that does is malformed, and would make tables of that many rows.
MAX_ID = 1 << 24


@dataclass(frozen=True, slots=True)
class AddedEntry:
    """One entry of ``added_tokens``: a token that is found in text before the model sees the rest."""

    index: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    def for_tokenizer(self) -> dict[str, Any]:
        """Return the entry as tokenizer.json writes it, keys in its order."""
        order = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        return {"id": self.index, **{key: getattr(self, key) for key in order}}

    def for_config(self) -> dict[str, Any]:
        """Return the entry as ``added_tokens_decoder`` of tokenizer_config.json writes it, under its id."""
        values = asdict(self)
        return {key: values[key] for key in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}

    def for_role(self) -> dict[str, Any]:
        """Return the entry as special_tokens_map.json writes it."""
        values = asdict(self)
        return {key: values[key] for key in ("content", "lstrip", "normalized", "rstrip", "single_word")}


def object_of(documents: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the JSON object ``name``, empty if there is none.

    Raises:
        InputRejected: the document is not an object.

    """
    value = documents.get(name, {})
    if not isinstance(value, dict):
        raise InputRejected(f"{name}: is not a JSON object")
    return value


def vocabulary_of(document: Mapping[str, Any]) -> tuple[dict[int, str], dict[str, int]]:
    """Return the token of each id and the id of each token of the model's own vocabulary.

    BPE, WordPiece and WordLevel keep a mapping, Unigram a list of pairs of token and score.

    Raises:
        InputRejected: the vocabulary has neither form, or gives one id to two tokens.

    """
    model = document.get("model")
    if not isinstance(model, dict):
        raise InputRejected("tokenizer.json: model: is not an object")
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        tokens = {_index(index, token): token for token, index in vocab.items()}
        if len(tokens) != len(vocab):
            raise InputRejected(f"tokenizer.json: model.vocab: {_sharing(vocab)}")
        return tokens, dict(vocab)
    if isinstance(vocab, list):
        tokens = dict(enumerate(_pieces(vocab)))
        return tokens, {token: index for index, token in tokens.items()}
    raise InputRejected("tokenizer.json: model.vocab: is neither a mapping of tokens to ids nor a list of pairs")


def added_entries(document: Mapping[str, Any]) -> tuple[AddedEntry, ...]:
    """Return the entries of ``added_tokens``.

    Raises:
        InputRejected: it is not a list of objects with content and id, or names a token twice.

    """
    listed = document.get("added_tokens") or []
    if not isinstance(listed, list):
        raise InputRejected("tokenizer.json: added_tokens: is not a list")
    entries = tuple(_entry(value, place) for place, value in enumerate(listed))
    seen: set[str] = set()
    for entry in entries:
        if entry.content in seen:
            raise InputRejected(f"tokenizer.json: added_tokens: {printable(entry.content)!r} stands there twice")
        seen.add(entry.content)
    return entries


def _entry(value: Json, place: int) -> AddedEntry:
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str):
        raise InputRejected(f"tokenizer.json: added_tokens[{place}]: is not an object with a content")
    flags = {}
    for name in ("special", "lstrip", "rstrip", "single_word", "normalized"):
        flag = value.get(name, False)
        if not isinstance(flag, bool):
            raise InputRejected(f"tokenizer.json: added_tokens[{place}].{name}: is not true or false")
        flags[name] = flag
    return AddedEntry(_index(value.get("id"), content), content, **flags)


def _index(value: Json, token: str) -> int:
    if type(value) is not int or not 0 <= value < MAX_ID:
        raise InputRejected(
            f"tokenizer.json: the id of token {printable(token)!r} is {printable(value)}, not a whole number from 0"
            f" to {MAX_ID - 1}"
        )
    return value


def _pieces(vocab: list[Any]) -> Iterator[str]:
    for place, item in enumerate(vocab):
        token = item[0] if isinstance(item, list) and item else item
        if not isinstance(token, str):
            raise InputRejected(f"tokenizer.json: model.vocab[{place}]: is not a pair of token and score")
        yield token


def _sharing(vocab: Mapping[str, int]) -> str:
    holder: dict[int, str] = {}
    for token, index in vocab.items():
        if index in holder:
            return f"id {index} is given to both {printable(holder[index])!r} and {printable(token)!r}"
        holder[index] = token
    return "an id is given to two tokens"
