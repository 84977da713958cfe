"""How problems name what they found and what was probably meant."""

import difflib
from collections.abc import Iterable

from graftkit.recipe_file.other_names import elsewhere, known_as

#: Longer texts are cut when a message quotes them.
SHOWN_CHARACTERS = 60

#: A name is taken for a slip of a longer or shorter one when they begin with so many equal characters.
EQUAL_BEGINNING = 3

#: Larger integers are not printed; Python refuses to print those of more than 4,300 digits.
MAX_SHOWN_BITS = 200


def encodable(text: str) -> str:
    """Escape lone surrogates, which pydantic takes in neither keys nor messages."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown(text: str) -> str:
    """Put ``text`` in single quotes, cut to a length that fits a line."""
    text = encodable(text)
    return f"'{text}'" if len(text) <= SHOWN_CHARACTERS else f"'{text[: SHOWN_CHARACTERS - 1]}…'"


def found(value: object) -> str:
    """Say what ``value`` is, in the words of someone who wrote it in YAML."""
    match value:
        case None:
            words = "nothing (null)"
        case bool():
            words = str(value).lower()
        case int() if value.bit_length() > MAX_SHOWN_BITS:
            words = "a number of many digits"
        case int() | float():
            words = f"the number {value}"
        case str():
            words = f"the text {shown(value)}"
        case dict():
            words = "a mapping"
        case list() | tuple():
            words = "a list"
        case _:
            words = f"a value of type {type(value).__name__}"
    return words


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is meant by ``name``: what others call so, or one that looks like it, or else begins like it."""
    names = list(known)
    if own := known_as(name, names):
        return own
    close = difflib.get_close_matches(name, names, n=1)
    begun = [other for other in names if other.startswith(name) or name.startswith(other)]
    begun = [other for other in begun if min(len(name), len(other)) >= EQUAL_BEGINNING]
    return next(iter([*close, *sorted(begun, key=len, reverse=True)]), None)


def unknown(what: str, name: object, known: Iterable[str], *, all_called: str) -> str:
    """Say ``unknown field; did you mean 'seed'?``, or which tool has that, or all known names where none is close."""
    names = list(known)
    close = None
    if isinstance(name, str):
        if not known_as(name, names) and (sentence := elsewhere(name)):
            return f"{what}; {sentence}"
        close = did_you_mean(name, names)
    return f"{what}; did you mean {shown(close)}?" if close else f"{what}; {all_called}: {', '.join(names)}"
