"""How a tokenizer would treat its added tokens, tried on a stand-in with its normalizer and decoder, but no vocabulary.

Added tokens are found before the model sees the text, so the stand-in answers for the real tokenizer, in microseconds
instead of the half second that a vocabulary of 128k tokens takes to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.bounds import tokenizers_faults
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenizers import Tokenizer

    from graftkit.checkpoint.tokenizer.vocabulary import AddedEntry


@dataclass(frozen=True, slots=True)
class Trial:
    """A stand-in for a tokenizer: its normalizer and its decoder around an empty model."""

    backend: Tokenizer

    @classmethod
    def build(cls, document: Mapping[str, Any]) -> Trial:
        """Make the stand-in of a tokenizer.json.

        Raises:
            InputRejected: the tokenizers library refuses its normalizer or decoder.

        """
        from graftkit.checkpoint.tokenizer.files import backend_of

        empty = {"type": "BPE", "vocab": {}, "merges": []}
        kept = {key: document.get(key) for key in ("version", "normalizer", "decoder")}
        rest = dict.fromkeys(("truncation", "padding", "pre_tokenizer", "post_processor"))
        return cls(backend_of({**kept, **rest, "added_tokens": [], "model": empty}))

    def normalize(self, text: str) -> str:
        """Return ``text`` as the normalizer leaves it."""
        normalizer = self.backend.normalizer
        with tokenizers_faults():
            result: str = text if normalizer is None else normalizer.normalize_str(text)
        return result

    def finds_normalized(self, content: str) -> bool:
        """Tell whether a normalized token would be found inside text.

        A normalizer that puts ``▁`` before a text puts it before the token's own pattern too, which then matches
        nothing but the beginning of a text.
        """
        pattern = self.normalize(content)
        return all(pattern in self.normalize(f"x{gap}{content}{gap}x") for gap in ("", " "))

    def check(self, old: Iterable[AddedEntry], new: Iterable[AddedEntry]) -> None:
        """Raise InputRejected unless each new token is found in text as itself, hides no old one, and decodes to itself."""
        with tokenizers_faults():
            self._check(list(old), list(new))

    def _check(self, old: list[AddedEntry], new: list[AddedEntry]) -> None:
        from tokenizers import AddedToken

        self.backend.add_tokens([AddedToken(**entry.for_config()) for entry in (*old, *new)])
        for entry in new:
            problem = self._unread(entry) or _hidden(entry, old) or self._also_read(entry) or self._miswritten(entry)
            if problem:
                raise InputRejected(f"tokenizer.json: the new token {printable(entry.content)!r} {problem}")

    def _unread(self, entry: AddedEntry) -> str:
        found = self.backend.encode(entry.content, add_special_tokens=False).ids
        if found == [self.backend.token_to_id(entry.content)]:
            return ""
        names = [repr(printable(self.backend.id_to_token(other))) for other in found]
        instead = f"is read as {', '.join(names)}" if names else "is not found"
        why = "because of the tokenizer's normalizer or of another added token"
        return f"{instead} in text, {why}; drop it or give it normalized: false"

    def _also_read(self, entry: AddedEntry) -> str:
        if not (entry.special and entry.normalized):
            return ""
        for other in {entry.content.lower(), entry.content.upper()} - {entry.content}:
            if self.normalize(other) == self.normalize(entry.content):
                return f"is special, but {printable(other)!r} would be read as it too; give it normalized: false"
        return ""

    def _miswritten(self, entry: AddedEntry) -> str:
        ids = self.backend.encode(entry.content, add_special_tokens=False).ids
        if entry.special and self.backend.decode(ids, skip_special_tokens=True).strip():
            return "would be written although special tokens are to be skipped; give it normalized: false"
        back = self.backend.decode(ids, skip_special_tokens=False).strip()
        # the library writes a normalized token as its normalizer left it
        if back == entry.content.strip() or (entry.normalized and back == self.normalize(entry.content).strip()):
            return ""
        why = "a byte-level decoder reads accented letters of an added token as bytes"
        return f"would be decoded as {printable(back)!r} ({why}); leave it to the old pieces, or spell it in ASCII"


def _hidden(entry: AddedEntry, old: Iterable[AddedEntry]) -> str:
    """Name an old token that is no longer found inside the new one where the new one is no word of its own."""
    if not entry.single_word:
        return ""
    inside = next((other.content for other in old if other.content in entry.content), None)
    return "" if inside is None else f"would hide {printable(inside)!r} inside longer words; give it single_word: false"
