"""How a tokenizer would treat its added tokens, tried on a stand-in with its normalizer and decoder, but no vocabulary.

Added tokens are found before the model sees the text, so the stand-in answers for the real tokenizer, in microseconds
instead of the half second that a vocabulary of 128k tokens takes to load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    def of(cls, document: Mapping[str, Any]) -> Trial:
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
        """Raise InputRejected unless each new token is found in text as itself and decodes to itself."""
        from tokenizers import AddedToken

        new = list(new)
        self.backend.add_tokens([AddedToken(**entry.for_config()) for entry in (*old, *new)])
        for entry in new:
            self._check_one(entry)

    def _check_one(self, entry: AddedEntry) -> None:
        index, shown = self.backend.token_to_id(entry.content), printable(entry.content)
        found = self.backend.encode(entry.content, add_special_tokens=False).ids
        if index is None or found != [index]:
            names = [printable(self.backend.id_to_token(other)) for other in found]
            instead = f"is read as {', '.join(map(repr, names))}" if names else "is not found"
            raise InputRejected(
                f"tokenizer.json: the new token {shown!r} {instead} in text, because of the tokenizer's normalizer or"
                " of another added token; drop it or give it normalized: false"
            )
        if entry.special and entry.normalized:
            for other in {entry.content.lower(), entry.content.upper()} - {entry.content}:
                if self.normalize(other) == self.normalize(entry.content):
                    raise InputRejected(
                        f"tokenizer.json: the new special token {shown!r} would be found in {printable(other)!r} too, because"
                        " the normalizer makes them equal; give it normalized: false"
                    )
        if entry.special and self.backend.decode([index], skip_special_tokens=True).strip():
            raise InputRejected(
                f"tokenizer.json: the new special token {shown!r} would be written although special tokens are to be"
                " skipped, because the normalizer changes it; give it normalized: false"
            )
        back = self.backend.decode([index], skip_special_tokens=False)
        written = {entry.content.strip(), self.normalize(entry.content).strip() if entry.normalized else ""}
        if back.strip() not in written:  # the library writes a normalized token as its normalizer left it
            raise InputRejected(
                f"tokenizer.json: the new token {shown!r} would be decoded as {printable(back)!r} (a byte-level decoder"
                " reads accented letters of an added token as bytes); leave it to the old pieces, or spell it in ASCII"
            )
