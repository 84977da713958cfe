"""The spec of extend_vocab: new tokens, roles and a chat template."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, PlainSerializer, Tag

from graftkit.recipe.chat_template import NO_JINJA, ChatTemplate, holds_jinja
from graftkit.recipe.choice import BRANCH, OrText
from graftkit.recipe.fields import FrozenMapping, ListOf, PathText, Text
from graftkit.recipe.schemes import InputScheme, Mean, Scheme
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Path
from graftkit.recipe_file.wording import shown

#: The fields that add tokens, and the others that change anything.
ADDING_TOKENS = ("tokens", "special_tokens", "roles")
OTHER_CHANGES = ("pad_to_multiple_of", "chat_template")

#: The flags of ``tokenizers.AddedToken`` that stand for the whole operation where a token does not say otherwise.
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")

#: What is wrong with padding with the end-of-sequence token, as the end of a sentence.
PAD_IS_EOS = (
    "is the eos_token too: trainers leave padding out of the loss, and with it would leave out the end of every text; give"
    " pad_token a token of its own, such as <|pad|>, or set allow_pad_is_eos: true"
)

Role = Literal["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]


class TokenSpec(Spec):
    """A token to add; the flags are those of ``tokenizers.AddedToken``."""

    content: Annotated[Text, Field(description="The token as it stands in text.")]
    init: Annotated[Scheme | None, Field(description="Input row; null means the operation's init.")] = None
    output_init: Annotated[
        Scheme | None, Field(description="Output row of an untied model; null means the operation's output_init.")
    ] = None
    lstrip: Annotated[
        bool | None, Field(description="Take in white space on the left; null means the operation's lstrip.")
    ] = None
    rstrip: Annotated[
        bool | None, Field(description="Take in white space on the right; null means the operation's rstrip.")
    ] = None
    single_word: Annotated[
        bool | None, Field(description="Match whole words only; null means the operation's single_word.")
    ] = None
    normalized: Annotated[
        bool | None, Field(description="Match in normalized text; null means the operation's normalized.")
    ] = None

    def plain(self) -> object:
        """Return the bare content where no other field says anything."""
        written = self.plain_fields()
        return self.content if len(written) == 1 else written


class TokenFile(Spec):
    """Tokens that stand in a file of their own: one a line, or JSON lines with the fields of a token."""

    file: Annotated[
        PathText,
        Field(description="Path of a .txt with a token a line, or of a .jsonl with a text or a mapping a line."),
    ]


def _list_or_file(value: object) -> str:
    return f"{BRANCH}{'file' if isinstance(value, dict | TokenFile) else 'list'}"


Token = Annotated[TokenSpec, OrText("content")]

Tokens = Annotated[
    Annotated[ListOf[Token], Tag(f"{BRANCH}list")] | Annotated[TokenFile, Tag(f"{BRANCH}file")],
    Discriminator(_list_or_file),
]

Roles = Annotated[Mapping[Role, Text], AfterValidator(FrozenMapping), PlainSerializer(dict)]


class ExtendVocab(Spec):
    """Add tokens to the tokenizer and rows for them to every table that is indexed by the vocabulary."""

    op: Literal["extend_vocab"] = "extend_vocab"
    tokens: Annotated[Tokens, Field(description="Plain tokens, matched inside text: a list, or {file: path}.")] = ()
    special_tokens: Annotated[
        Tokens, Field(description="Special tokens, such as <|tool_call|>: a list, or {file: path}.")
    ] = ()
    roles: Annotated[
        Roles, Field(description="Named special tokens; added when missing, and kept in step in every config.")
    ] = FrozenMapping()
    existing: Annotated[
        Literal["error", "skip"],
        Field(description="What becomes of a listed token that the tokenizer has already: all are named, or left out."),
    ] = "error"
    lstrip: Annotated[bool, Field(description="Of all listed tokens: take in white space on the left.")] = False
    rstrip: Annotated[bool, Field(description="Of all listed tokens: take in white space on the right.")] = False
    single_word: Annotated[bool, Field(description="Of all listed tokens: match whole words only.")] = False
    normalized: Annotated[
        bool | None,
        Field(description="Of all listed tokens: match in normalized text; null means what suits token and tokenizer."),
    ] = None
    allow_pad_is_eos: Annotated[
        bool, Field(description="Let pad_token be the eos_token, which hides the end of every text from most trainers.")
    ] = False
    init: Annotated[InputScheme, Field(description="Input rows of tokens that name no init of their own.")] = (
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
        yield from _without_effect(data)
        yield from _repeated(data)
        template = data.get("chat_template")
        if isinstance(template, str) and not holds_jinja(template):
            yield ("chat_template",), NO_JINJA
        roles = data.get("roles")
        if isinstance(roles, Mapping) and roles.get("pad_token") == roles.get("eos_token") is not None:
            if not data.get("allow_pad_is_eos"):
                yield ("roles", "pad_token"), PAD_IS_EOS
        elif data.get("allow_pad_is_eos") and not (
            isinstance(roles, Mapping) and {"pad_token", "eos_token"} & {*roles}
        ):
            yield ("allow_pad_is_eos",), "has no effect without a pad_token or an eos_token in roles"

    def plain(self) -> object:
        """Return the fields, without an ``init`` that no token could use and without what is off or as it always is."""
        fields = type(self).model_fields
        usual = [
            name for name in (*FLAGS, "existing", "allow_pad_is_eos") if getattr(self, name) == fields[name].default
        ]
        written = {name: value for name, value in self.plain_fields().items() if name not in usual}
        if not any(name in written for name in ADDING_TOKENS):
            del written["init"]
        return written


def _without_effect(data: Mapping[str, object]) -> Iterator[tuple[Path, str]]:
    if not any(data.get(name) for name in (*ADDING_TOKENS, *OTHER_CHANGES)):
        yield (), f"adds nothing; give one of {', '.join((*ADDING_TOKENS, *OTHER_CHANGES))}"
    elif not any(data.get(name) for name in ADDING_TOKENS):
        for name in ("init", "output_init"):
            if data.get(name) is not None:
                yield (name,), f"has no effect without {', '.join(ADDING_TOKENS[:-1])} or {ADDING_TOKENS[-1]}"
    for name in ("existing", *FLAGS):
        if data.get(name) and not (data.get("tokens") or data.get("special_tokens")):
            yield (name,), "has no effect without tokens or special_tokens"


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
