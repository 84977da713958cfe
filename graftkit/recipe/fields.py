"""The types of fields that recipes are made of, beside numbers and booleans."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from graftkit.recipe.spec import problem
from graftkit.recipe_file.paths import RecipeFolder, expand_path

Key = TypeVar("Key", bound=str)
Value = TypeVar("Value")


class FrozenMapping(Mapping[Key, Value]):
    """A mapping to frozen values that cannot be changed, so that the value that holds it is frozen and hashable."""

    def __init__(self, items: Mapping[Key, Value] | Iterable[tuple[Key, Value]] = ()) -> None:
        self._items = dict(items)

    def __getitem__(self, key: Key) -> Value:
        return self._items[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def _checked_text(text: str) -> str:
    if not text.strip():
        raise problem("must not be empty" if not text else "must not be only white space")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise problem(f"holds U+{code:04X}, half of a surrogate pair, which no file can store") from error
    return text


def _path_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _expanded(path: str, info: ValidationInfo) -> str:
    try:
        return info.context.expand(path) if isinstance(info.context, RecipeFolder) else expand_path(path)
    except ValueError as error:
        raise problem(str(error)) from error


def _found(path: str, info: ValidationInfo) -> str:
    return info.context.find(path) if isinstance(info.context, RecipeFolder) else path


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


#: Text that says something and that a UTF-8 file can hold.
Text = Annotated[str, AfterValidator(_checked_text), Field(json_schema_extra={"pattern": r"\S"})]

#: Text that names a place to write, with ``~`` and ``${NAME}`` expanded; library users may give a ``pathlib.Path``.
OutputText = Annotated[Text, BeforeValidator(_path_text), AfterValidator(_expanded)]

#: Text that names a file, a folder or a hub id to read; a relative path is tried beside the recipe's file too.
PathText = Annotated[OutputText, AfterValidator(_found)]

#: A list of the recipe, kept as a tuple.
ListOf = Annotated[tuple[Value, ...], BeforeValidator(_as_tuple)]
