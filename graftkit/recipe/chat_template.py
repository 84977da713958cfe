"""A chat template in a recipe: Jinja text, or the file that holds it."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from graftkit.recipe.choice import BRANCH, text_or_mapping
from graftkit.recipe.fields import PathText, Text
from graftkit.recipe.spec import Spec

#: What opens a place of a template that is not plain text.
_OPENINGS = ("{{", "{%")

#: What is wrong with a template of plain text, as the end of a sentence, in a recipe and in a checkpoint.
NO_JINJA = (
    "holds no Jinja, so that every conversation becomes this one text; where it is the name of a file, write"
    " chat_template: {file: ...}"
)


class ChatTemplateFile(Spec):
    """A chat template that stands in a file of its own."""

    file: Annotated[PathText, Field(description="Path of a Jinja template, UTF-8.")]


ChatTemplate = Annotated[
    Annotated[Text, Tag(f"{BRANCH}text")] | Annotated[ChatTemplateFile, Tag(f"{BRANCH}mapping")],
    Discriminator(text_or_mapping),
]


def holds_jinja(text: str) -> bool:
    """Whether a template has a place that is filled in, or a statement; without one it is the same text for every conversation."""
    return any(opening in text for opening in _OPENINGS)
