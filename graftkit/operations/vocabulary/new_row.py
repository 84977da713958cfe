"""How the row of a new token id is made: by which scheme, and from which old tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.checkpoint.tokenizer.pieces import Piece
from graftkit.errors import RecipeError, printable
from graftkit.recipe import Copy, Describe, Scheme, SubwordMean
from graftkit.recipe.schemes import Distill, InputScheme, SchemeSpec


@dataclass(frozen=True, slots=True)
class Choice:
    """A scheme together with the old ids that it averages; empty for schemes that use the whole table."""

    scheme: SchemeSpec
    pieces: tuple[int, ...] = ()

    @classmethod
    def look_up(cls, scheme: InputScheme, content: str | None, tokenizer: TokenizerFiles) -> Self:
        """Look up the old ids that ``scheme`` needs, in the tokenizer as it was before the token had a row."""
        match scheme:
            case SubwordMean() | Distill():
                pieces = _encode(tokenizer, content or "", f"token {content!r}")
            case Describe(text=text):
                text = text or _words(content or "")
                pieces = _encode(tokenizer, text, f"description {text!r}")
            case Copy(token=token):
                index = tokenizer.id_of(token)
                if index is None:
                    raise RecipeError(f"copy: the tokenizer has no token {printable(token)!r} with a row", field="init")
                pieces = (index,)
            case _:
                pieces = ()
        return cls(scheme, pieces)


def _words(name: str) -> str:
    """The words in the name of a token, ``tool call`` for ``<|tool_call|>``."""
    words = " ".join(re.findall(r"[^\W_]+", name))
    if not words:
        raise RecipeError(f"describe: the name {printable(name)!r} holds no word; give text", field="init")
    return words


def _encode(tokenizer: TokenizerFiles, text: str, what: str) -> tuple[int, ...]:
    pieces = tuple(index for index in tokenizer.encode(text) if index in tokenizer.tokens)
    if not pieces:
        raise RecipeError(f"{printable(what)} has no old token to average; choose another init")
    return pieces


@dataclass(frozen=True, slots=True)
class NewRow:
    """One new id: its token (None for appended padding) and how its input and output rows are made."""

    index: int
    content: str | None
    input: Choice
    output: Choice

    @classmethod
    def of_piece(
        cls, index: int, piece: Piece, text: str, init: InputScheme, output: Scheme, tokenizer: TokenizerFiles
    ) -> Self:
        """The row of a learned piece, which stands for its old parts and reads as ``text``."""
        parts = tuple(part for part in piece.parts if part in tokenizer.tokens)
        choices = [
            Choice(scheme, parts)
            if isinstance(scheme, SubwordMean | Distill) and parts
            else Choice.look_up(scheme, text, tokenizer)
            for scheme in (init, output)
        ]
        return cls(index, piece.content, *choices)

    @classmethod
    def resolve(
        cls, index: int, content: str | None, init: InputScheme, output: Scheme, tokenizer: TokenizerFiles
    ) -> Self:
        """Resolve both schemes against the old tokenizer."""
        return cls(index, content, Choice.look_up(init, content, tokenizer), Choice.look_up(output, content, tokenizer))
