"""How a tokenizer splits the text of one token of another: into tokens that spell just that, where it has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from graftkit.checkpoint.tokenizer.spelling import Spelling

#: What stands before a text to make it the middle of one, or of a word: the beginning of a text may get a space of its own.
_BEFORE = ("", "\n", "a", "q", "x")


class Segmentation:
    """Splits bytes of text by the tokenizer of ``spelling``."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling

    def pieces(self, spelled: bytes) -> tuple[int, ...]:
        """The ids that ``spelled`` is split into; empty where the tokenizer has none for it.

        Taken are the ids behind a beginning of text that spell just these bytes, else those of the text as it is. Bytes that are no
        text, such as half a letter, are split by the longest token that fits.
        """
        try:
            text = spelled.decode("utf-8")
        except UnicodeDecodeError:
            return self._longest_first(spelled)
        exact = (self._behind(before, text, spelled) for before in _BEFORE)
        found = next((ids for ids in exact if ids), ())
        return found or tuple(self._live(self._spelling.files.encode(text)))

    def _behind(self, before: str, text: str, spelled: bytes) -> tuple[int, ...]:
        """The last ids of ``before`` and ``text`` where they spell just the bytes of the text."""
        found: list[int] = []
        left = len(spelled)
        for index in reversed(self._spelling.files.encode(before + text)):
            if left <= 0:
                break
            found.append(index)
            left -= len(self._spelling.texts.get(index, spelled))
        found.reverse()
        joined = b"".join(self._spelling.texts.get(index, b"") for index in found)
        return tuple(found) if joined == spelled else ()

    def _live(self, ids: list[int]) -> Iterator[int]:
        """The ids that are tokens with a meaning of their own: what is unknown says nothing."""
        return (index for index in ids if index in self._spelling.texts)

    def _longest_first(self, spelled: bytes) -> tuple[int, ...]:
        found: list[int] = []
        place = 0
        while place < len(spelled):
            ends = range(min(len(spelled), place + self._longest), place, -1)
            end = next((end for end in ends if spelled[place:end] in self._ids), None)
            if end is None:
                return ()
            found.append(self._ids[spelled[place:end]])
            place = end
        return tuple(found)

    @cached_property
    def _ids(self) -> Mapping[bytes, int]:
        ordered = sorted(
            self._spelling.texts.items(), key=lambda item: (item[0] not in self._spelling.one_byte, -item[0])
        )
        return {spelled: index for index, spelled in ordered}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)
