"""The bytes of text that each token of a tokenizer stands for: ``▁the`` and ``Ġthe`` are both a space and three letters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.bounds import tokenizers_faults
from graftkit.checkpoint.tokenizer.files import TokenizerFiles, backend_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: A token of SentencePiece that is one byte.
ONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

#: What stands before a token that is decoded, so that a space at its beginning stays.
_BEFORE = "a"


@dataclass(frozen=True)
class Spelling:
    """What the tokens of ``files`` spell.

    Attributes:
        special: ids of tokens that spell nothing: special ones, and the one for what is unknown.
    """

    files: TokenizerFiles = field(repr=False)
    special: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "special", frozenset(_special(self.files)))

    @cached_property
    def texts(self) -> Mapping[int, bytes]:
        """The bytes of each token that spells any, by id.

        A byte-level vocabulary has a letter for each byte, and SentencePiece a token such as ``<0x0A>``. Any other token is decoded
        by the tokenizer's own decoder behind a letter, which tells of a word's beginning (``▁the``, or ``the`` beside ``##the``).
        """
        found = {index: self._spell(token) for index, token in self.files.tokens.items() if index not in self.special}
        return {index: spelled for index, spelled in found.items() if spelled}

    @cached_property
    def one_byte(self) -> frozenset[int]:
        """The ids of tokens that stand in for bytes that no other token has."""
        if not self._falls_back:
            return frozenset()
        return frozenset(index for index, token in self.files.tokens.items() if ONE_BYTE.fullmatch(token))

    @cached_property
    def unused(self) -> frozenset[int]:
        """The ids among :attr:`one_byte` that never stand in text, since another token spells that byte."""
        others = {spelled for index, spelled in self.texts.items() if index not in self.one_byte}
        return frozenset(index for index in self.one_byte if self.texts.get(index) in others)

    def _spell(self, token: str) -> bytes:
        if token in self._added:
            return token.encode("utf-8", "surrogatepass")
        if self._byte_level:
            letters = _letters()
            if all(letter in letters for letter in token):
                return bytes(letters[letter] for letter in token)
            return token.encode("utf-8", "surrogatepass")
        if self._falls_back and (byte := ONE_BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return self._decoded(token).encode("utf-8", "surrogatepass")

    def _decoded(self, token: str) -> str:
        suffix = self.files.document["model"].get("end_of_word_suffix")
        if suffix and token.endswith(suffix):
            return f"{token.removesuffix(suffix)} "
        decoder = self._backend.decoder
        if decoder is None:  # the library joins tokens by spaces
            return f" {token}"
        with tokenizers_faults():
            text: str = decoder.decode([_BEFORE, token])
        return text.removeprefix(_BEFORE)

    @cached_property
    def _backend(self) -> Tokenizer:
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        rest = dict.fromkeys(("truncation", "padding", "post_processor", "normalizer", "pre_tokenizer"))
        kept = {key: self.files.document.get(key) for key in ("version", "decoder")}
        return backend_of({**kept, **rest, "added_tokens": [], "model": empty})

    @cached_property
    def _added(self) -> frozenset[str]:
        return frozenset(entry.content for entry in self.files.added)

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in _kinds(self.files.document.get("decoder"))

    @cached_property
    def _falls_back(self) -> bool:
        kinds = _kinds(self.files.document.get("decoder"))
        return "ByteFallback" in kinds or bool(self.files.document["model"].get("byte_fallback"))


def _special(files: TokenizerFiles) -> Iterator[int]:
    """Yield the ids of tokens that the tokenizer leaves out of text."""
    model = files.document["model"]
    yield from (entry.index for entry in files.added if entry.special)
    yield from (files.ids[content] for content in files.special.values() if content in files.ids)
    if isinstance(model.get("unk_token"), str) and model["unk_token"] in files.ids:
        yield files.ids[model["unk_token"]]
    if isinstance(model.get("unk_id"), int):
        yield model["unk_id"]


def _kinds(part: Any) -> frozenset[str]:
    """The kinds of the parts that a decoder of tokenizer.json is made of."""
    if not isinstance(part, Mapping):
        return frozenset()
    inner = part.get("decoders") or part.get("pretokenizers") or ()
    return frozenset({str(part.get("type"))}).union(*(_kinds(item) for item in inner))


def _letters() -> dict[str, int]:
    """The byte of each letter of a byte-level vocabulary.

    Source: ``bytes_to_unicode`` of GPT-2: what prints stands for itself, the others for 256, 257, ... in their order.
    """
    if not _LETTERS:
        printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(0x100) if byte not in printing]
        _LETTERS.update({chr(byte): byte for byte in printing})
        _LETTERS.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return _LETTERS


_LETTERS: dict[str, int] = {}
