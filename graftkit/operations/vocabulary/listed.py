"""The tokens that a recipe lists, in itself or in a file, each with its place; and those of them that exist already."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from graftkit.checkpoint.examples import bounded_lines
from graftkit.checkpoint.tokenizer import NewToken, TokenizerFiles
from graftkit.checkpoint.tokenizer.refusals import one_piece
from graftkit.errors import RecipeError, few, plural, printable
from graftkit.recipe.extend_vocab import FLAGS, ExtendVocab, TokenFile, TokenSpec
from graftkit.recipe.messages import note_errors
from graftkit.recipe_file.problems import Document, Place
from graftkit.recipe_file.wording import shown

#: More problems of one recipe than these are counted, not named.
NAMED = 100


@dataclass(frozen=True, slots=True)
class Listed:
    """A token of a recipe. ``field`` is its place in the operation, ``origin`` its file and line, empty for one in the recipe."""

    field: str
    origin: str
    spec: TokenSpec
    special: bool

    def as_new(self, operation: ExtendVocab) -> NewToken:
        """The token with its flags, and the operation's where it says nothing."""
        own = {name: value for name in FLAGS if (value := getattr(self.spec, name)) is not None}
        flags: dict[str, Any] = {**{name: getattr(operation, name) for name in FLAGS}, **own}
        return NewToken(self.spec.content, special=self.special, **flags)


def listed_tokens(spec: ExtendVocab) -> list[Listed]:
    """Every token that is listed, plain ones first, in the order of lists and files.

    Raises:
        RecipeError: a file cannot be read or holds what is no token, or a token is listed twice; all of it at once.
    """
    found: list[Listed] = []
    problems: list[tuple[str, str]] = []
    for name, special in (("tokens", False), ("special_tokens", True)):
        given = getattr(spec, name)
        if isinstance(given, TokenFile):
            found += _from_file(Path(given.file), name, problems, special=special)
        else:
            found += [Listed(f"{name}.{place}", "", token, special) for place, token in enumerate(given)]
    first: dict[str, Listed] = {}
    for token in found:
        before = first.setdefault(token.spec.content, token)
        if before is not token:
            text = (
                f"the token {shown(token.spec.content)} is given a second time, after {before.origin or before.field}"
            )
            problems.append((token.field, _at(token, text)))
    _raise(problems)
    return found


def new_ones(
    spec: ExtendVocab, listed: Sequence[Listed], tokenizer: TokenizerFiles
) -> tuple[list[Listed], Iterator[str]]:
    """The listed tokens that the tokenizer lacks, and a note on those that are skipped.

    Raises:
        RecipeError: the recipe does not skip them; each is named with its place.
    """
    existing = [(token, why) for token in listed if (why := _exists(token, spec, tokenizer))]
    if existing and spec.existing == "error":
        remedy = "; existing: skip leaves such tokens out"
        texts = [_at(token, f"the token {shown(token.spec.content)} exists already, {why}") for token, why in existing]
        _raise(
            [(token.field, text) for (token, _), text in zip(existing, [texts[0] + remedy, *texts[1:]], strict=True)]
        )
    skipped = {token.spec.content for token, _ in existing}
    return [token for token in listed if token.spec.content not in skipped], _skipped(skipped)


def _skipped(contents: set[str]) -> Iterator[str]:
    if contents:
        are = "exists already and is" if len(contents) == 1 else "exist already and are"
        yield f"{plural(len(contents), 'listed token')} {are} left out: {few(contents)}"


def _exists(token: Listed, spec: ExtendVocab, tokenizer: TokenizerFiles) -> str:
    """How the tokenizer has the token already; empty where it has not."""
    content = token.spec.content
    index = tokenizer.id_of(content)
    if index is not None:
        return f"with id {index}"
    if token.special or token.as_new(spec).normalized is False or (index := one_piece(tokenizer, content)) is None:
        return ""
    return f"it is read as {printable(tokenizer.token_of(index))!r}, id {index}"


def _at(token: Listed, text: str) -> str:
    return f"{token.origin}: {text}" if token.origin else text


def _raise(problems: Sequence[tuple[str, str]]) -> None:
    if problems:
        shown_ones = list(problems[:NAMED])
        if len(problems) > NAMED:
            shown_ones.append((shown_ones[-1][0], f"{len(problems) - NAMED:,} more such problems"))
        raise RecipeError([text for _, text in shown_ones], field=[field for field, _ in shown_ones])


def _from_file(path: Path, field: str, problems: list[tuple[str, str]], *, special: bool) -> Iterator[Listed]:
    """Yield the tokens of a file; what is wrong with a line goes to ``problems``.

    Raises:
        RecipeError: the file cannot be read, or holds no token.
    """
    name = printable(path)
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise RecipeError(f"{name}: is neither .txt, with a token a line, nor .jsonl", field=field)
    empty = True
    try:
        for line, text in bounded_lines(path):
            if text.strip():
                empty = False
                origin = f"{name}:{line}"
                token = _token(text, origin, field, problems, json_lines=path.suffix.lower() == ".jsonl")
                if token is not None:
                    yield Listed(field, origin, token, special)
    except OSError as error:
        raise RecipeError(f"{name}: {error.strerror or error}", field=field) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: is not UTF-8 text", field=field) from error
    if empty:
        raise RecipeError(f"{name}: holds no token", field=field)


def _token(
    text: str, origin: str, field: str, problems: list[tuple[str, str]], *, json_lines: bool
) -> TokenSpec | None:
    """The token of a line; None where the line is wrong. White space around a word of a plain text is no part of it."""
    value: object = text.strip()
    if json_lines:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.append((field, f"{origin}: is not JSON: {printable(error)}"))
            return None
    document = Document(value if isinstance(value, dict) else {"content": value}, {(): Place(origin, (0, 0))})
    try:
        return TokenSpec.model_validate(document.data)
    except ValidationError as error:
        note_errors(error, document)
        problems += [(field, line) for line in document.lines()]
        return None
