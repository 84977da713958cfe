"""Pydantic's errors in plain sentences, one for each type of error."""

import json
import re
from collections.abc import Callable, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from graftkit.recipe.choice import BRANCH
from graftkit.recipe.spec import OWN
from graftkit.recipe_file.problems import Document, Path
from graftkit.recipe_file.wording import found, shown, unknown

#: Turns an error and the plain scalar that was written (None for all else) into a sentence.
Sentence = Callable[[ErrorDetails, str | None], str]

#: So many items of a list that are all wrong in the same way are named.
LISTED = 4

#: A number that YAML 1.1 takes for text, since it has no point.
_SCIENTIFIC = re.compile(r"([-+]?[0-9]+)[eE]([-+]?)([0-9]+)")


def note_errors(error: ValidationError, document: Document) -> None:
    """Add every problem that ``error`` holds to ``document``; items of one list that YAML misreads are one problem."""
    misread: dict[Path, list[tuple[str, object]]] = {}
    found_at = []
    for details in error.errors(include_url=False):
        path = _written_path(details["loc"], document.data)
        written = document.places[path].text if path in document.places else None
        found_at.append((path, written, details))
        if written is not None and _is_misread(details) and isinstance(path[-1], int):
            misread.setdefault(path[:-1], []).append((written, details["input"]))
    for path, written, details in found_at:
        together = misread.get(path[:-1], []) if _is_misread(details) else []
        if len(together) < 2:
            document.add(path, SENTENCES.get(details["type"], _fallback)(details, written))
        elif together[0] == (written, details["input"]):  # a line that is the same again is printed once
            document.add(path[:-1], _all_misread(together), document.place(path))


def _written_path(location: Path, data: object) -> Path:
    """``location`` without what pydantic adds to it, and no deeper than what was written, save for a missing field."""
    path: Path = ()
    for step in location:
        if isinstance(step, str) and step.startswith(BRANCH):
            continue
        if isinstance(data, dict):
            path, data = (*path, step), data.get(step)
        elif isinstance(data, list) and isinstance(step, int):
            path, data = (*path, step), data[step]
        else:
            break
    return path


def _found(kind: str) -> Sentence:
    return lambda error, _: f"must be {kind}, found {found(error['input'])}"


def _text(error: ErrorDetails, written: str | None) -> str:
    value = error["input"]
    if written is not None and _is_misread(error):
        return f'must be text, but YAML reads {written} as {found(value)}; quote it: "{written}"'
    return f"must be text, found {found(value)}"


def _is_misread(error: ErrorDetails) -> bool:
    """Whether text was wanted and YAML, where the scalar was written plain, took it for something else."""
    return error["type"] == "string_type" and isinstance(error["input"], bool | int | float)


def _all_misread(items: Sequence[tuple[str, object]]) -> str:
    """The same of several items of one list, the first of many."""
    first = items[:LISTED]
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    read = ", ".join(f"{written} as {found(value)}" for written, value in first)
    return f"must be text, but YAML reads {read}{more}; quote them: {', '.join(json.dumps(text) for text, _ in first)}"


def _number(error: ErrorDetails, _: str | None) -> str:
    value = error["input"]
    if isinstance(value, str) and (match := _SCIENTIFIC.fullmatch(value)):
        whole, sign, exponent = match.groups()
        return f"must be a number, but YAML reads {value} as text; write {whole}.0e{sign or '+'}{exponent}"
    return f"must be a number, found {found(value)}{_unquote(value, _is_number)}"


def _whole_number(error: ErrorDetails, _: str | None) -> str:
    value = error["input"]
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) and float(value).is_integer():
        return f"must be a whole number, found {found(value)}; write out its digits"
    return f"must be a whole number, found {found(value)}{_unquote(value, str.isdecimal)}"


def _boolean(error: ErrorDetails, _: str | None) -> str:
    value = error["input"]
    return f"must be true or false, found {found(value)}{_unquote(value, {'true', 'false'}.__contains__)}"


def _unquote(value: object, would_do: Callable[[str], bool]) -> str:
    return "; remove the quotes" if isinstance(value, str) and would_do(value) else ""


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(0|[1-9][0-9]*|[0-9]*\.[0-9]+)", text) is not None


def _limit(words: str, key: str) -> Sentence:
    def sentence(error: ErrorDetails, _: str | None) -> str:
        limit = error["ctx"][key]
        shortest = int(limit) if limit == int(limit) else limit
        return f"must be {words} {shortest}, found {found(error['input'])}"

    return sentence


def _literal(error: ErrorDetails, _: str | None) -> str:
    value, expected = error["input"], str(error["ctx"]["expected"])
    known = re.findall(r"'([^']*)'", expected)
    if error["loc"][-1] == "[key]":
        return unknown("unknown field", value, known, all_called="the fields here are")
    if known and isinstance(value, str):
        return unknown(f"unknown value {shown(value)}", value, known, all_called="it is one of")
    return f"must be {expected}, found {found(value)}{_unquote(value, expected.__eq__)}"


def _at_least(error: ErrorDetails, _: str | None) -> str:
    least = error["ctx"]["min_length"]
    return f"must hold at least {least} item{'s' if least != 1 else ''}, found {error['ctx']['actual_length']}"


def _fallback(error: ErrorDetails, _: str | None) -> str:
    """For constraints of specs to come that have no sentence yet; a test tells when one of today's is missing."""
    return f"is not valid: {error['msg']}"


SENTENCES: dict[str, Sentence] = {
    OWN: lambda error, _: error["msg"],
    "missing": lambda *_: "required field is missing",
    "string_type": _text,
    "int_type": _whole_number,
    "float_type": _number,
    "bool_type": _boolean,
    "finite_number": _found("a finite number"),
    "tuple_type": _found("a list"),
    "dict_type": _found("a mapping"),
    "model_type": _found("a mapping"),
    "literal_error": _literal,
    "too_short": _at_least,
    "greater_than": _limit("greater than", "gt"),
    "greater_than_equal": _limit("at least", "ge"),
    "less_than": _limit("less than", "lt"),
    "less_than_equal": _limit("at most", "le"),
    "invalid_key": lambda error, _: f"a key must be text, found {found(error['input'])}",
}
