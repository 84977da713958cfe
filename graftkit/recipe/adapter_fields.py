"""The types of fields that the operations on adapters share, as peft names and reads them."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, PlainSerializer, Tag

from graftkit.recipe.choice import BRANCH
from graftkit.recipe.fields import FrozenMapping, ListOf, Text


def _text_or_list(value: object) -> str:
    return f"{BRANCH}text" if isinstance(value, str) else f"{BRANCH}list"


def as_tuple(value: object) -> object:
    """Let a single number stand for a list of one."""
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


def _frozen(value: object) -> object:
    if isinstance(value, Mapping):
        return FrozenMapping({key: _frozen(item) for key, item in value.items()})
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


#: ``target_modules``: a word or a regular expression, or a list of names and globs.
Targets = Annotated[
    Annotated[Text, Tag(f"{BRANCH}text")] | Annotated[ListOf[Text], Field(min_length=1), Tag(f"{BRANCH}list")],
    Discriminator(_text_or_list),
]
#: ``modules_to_save``: auto, or a list of names.
Saved = Annotated[
    Annotated[Literal["auto"], Tag(f"{BRANCH}text")] | Annotated[ListOf[Text], Tag(f"{BRANCH}list")],
    Discriminator(_text_or_list),
]


def none_if_empty(value: object) -> object:
    """Read an empty list as null."""
    return None if value == () else value


#: Ranks or alphas by the name of what they are for.
Pattern = Annotated[Mapping[Text, Annotated[int, Field(ge=1)]], AfterValidator(FrozenMapping), PlainSerializer(dict)]
#: Fields that peft checks.
Values = Annotated[Mapping[Text, object], AfterValidator(_frozen), PlainSerializer(dict)]

#: Fields of peft's configs that are filled in when an adapter is made.
FILLED = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "peft_type")
