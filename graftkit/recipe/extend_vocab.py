"""The spec of extend_vocab: new tokens, roles and a chat template."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, PlainSerializer, Tag

from graftkit.recipe.choice import BRANCH, OrText, text_or_mapping
from graftkit.recipe.fields import FrozenMapping, ListOf, PathText, Text
from graftkit.recipe.schemes import Mean, Scheme
from graftkit.recipe.spec import Path, Spec
from graftkit.recipe.wording import shown

#: The fields that add tokens, and the others that change anything.
ADDING_TOKENS = ("tokens", "special_tokens", "roles")
OTHER_CHANGES = ("pad_to_multiple_of", "chat_template")

Role = Literal["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]


class TokenSpec(Spec):
    """A token to add; the flags are those of ``tokenizers.AddedToken``."""

    content: Annotated[Text, Field(description="The token as it stands in text.")]
    init: Annotated[Scheme | None, Field(description="Input row; null means the operation's init.")] = None
    output_init: Annotated[
        Scheme | None, Field(description="Output row of an untied model; null means the operation's output_init.")
    ] = None
    lstrip: Annotated[bool, Field(description="Take in white space on the left.")] = False
    rstrip: Annotated[bool, Field(description="Take in white space on the right.")] = False
    single_word: Annotated[bool, Field(description="Match whole words only.")] = False
    normalized: Annotated[
        bool | None, Field(description="Match in normalized text; null means what suits the token and the tokenizer.")
    ] = None

    def plain(self) -> object:
        """Return the bare content where no other field differs from its default."""
        fields = type(self).model_fields
        written = {name: v for name, v in self.plain_fields().items() if getattr(self, name) != fields[name].default}
        return self.content if len(written) == 1 else written


class ChatTemplateFile(Spec):
    """A chat template that stands in a file of its own."""

    file: Annotated[PathText, Field(description="Path of a Jinja template, UTF-8.")]


Token = Annotated[TokenSpec, OrText("content")]

ChatTemplate = Annotated[
    Annotated[Text, Tag(f"{BRANCH}text")] | Annotated[ChatTemplateFile, Tag(f"{BRANCH}mapping")],
    Discriminator(text_or_mapping),
]

Roles = Annotated[Mapping[Role, Text], AfterValidator(FrozenMapping), PlainSerializer(dict)]


class ExtendVocab(Spec):
    """Add tokens to the tokenizer and rows for them to every table that is indexed by the vocabulary."""

    op: Literal["extend_vocab"] = "extend_vocab"
    tokens: Annotated[ListOf[Token], Field(description="Plain tokens, matched inside text.")] = ()
    special_tokens: Annotated[ListOf[Token], Field(description="Special tokens, such as <|tool_call|>.")] = ()
    roles: Annotated[
        Roles, Field(description="Named special tokens; added when missing, and kept in step in every config.")
    ] = FrozenMapping()
    init: Annotated[Scheme, Field(description="Input rows of tokens that name no init of their own.")] = (
        Mean.model_construct()
    )
    output_init: Annotated[
        Scheme | None, Field(description="Output rows (and bias) of an untied model; null means mean.")
    ] = None
    pad_to_multiple_of: Annotated[
        int | None, Field(ge=1, le=2**20, description="Grow the tables to a multiple of this; they never shrink.")
    ] = None
    chat_template: Annotated[
        ChatTemplate | None, Field(description="Inline Jinja text, or {file: path}; null keeps the old one.")
    ] = None

    @classmethod
    def contradictions(cls, data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
        """Refuse an operation that does nothing, an init that no row gets, a token given twice."""
        adds_tokens = any(data.get(name) for name in ADDING_TOKENS)
        if not any(data.get(name) for name in (*ADDING_TOKENS, *OTHER_CHANGES)):
            yield (), f"adds nothing; give one of {', '.join((*ADDING_TOKENS, *OTHER_CHANGES))}"
        elif not adds_tokens:
            for name in ("init", "output_init"):
                if data.get(name) is not None:
                    yield (name,), f"has no effect without {', '.join(ADDING_TOKENS[:-1])} or {ADDING_TOKENS[-1]}"
        yield from _repeated(data)

    def plain(self) -> object:
        """Return the fields, without an ``init`` that no token could use."""
        written = self.plain_fields()
        if not any(name in written for name in ADDING_TOKENS):
            del written["init"]
        return written


def _repeated(data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
    first: dict[str, str] = {}
    for name in ("tokens", "special_tokens"):
        items = data.get(name)
        for index, item in enumerate(items if isinstance(items, list | tuple) else ()):
            content = _content(item)
            if content in first:
                yield (name, index), f"the token {shown(content)} is given a second time, after {first[content]}"
            elif content is not None:
                first[content] = f"{name}.{index}"


def _content(item: object) -> str | None:
    content = item.content if isinstance(item, TokenSpec) else item.get("content") if isinstance(item, dict) else item
    return content if isinstance(content, str) else None
