"""Annotations for values that may be written in more than one way, so that only the errors of the way taken appear."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from graftkit.recipe.fields import Text
from graftkit.recipe.spec import Spec, problem, problems
from graftkit.recipe_file.wording import found, shown, unknown

#: Begins the steps that pydantic adds to an error's location for the branch of a union; no key of a recipe begins so.
BRANCH = "\0"


def text_or_mapping(value: object) -> str:
    """Return the branch of a union of text and a spec: a mapping is meant as the spec, all else as text."""
    return f"{BRANCH}mapping" if isinstance(value, dict | Spec) else f"{BRANCH}text"


@dataclass(frozen=True)
class OneOf:
    """Annotation of a union of specs that are told apart by the word under ``key``, such as ``op``.

    ``Annotated[Mean | Zeros, OneOf("scheme", "scheme", words=True)]`` also takes the bare word where no other field is
    required. A union of a single member works like any other.
    """

    key: str
    noun: str
    words: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        members: dict[str, type[Spec]] = {
            member.model_fields[self.key].default: member for member in get_args(source) or (source,)
        }
        branches = {BRANCH + word: handler.generate_schema(member) for word, member in members.items()}
        union = core_schema.tagged_union_schema(branches, discriminator=self._branch)
        words = [word for word, member in members.items() if self.words and not _required(member)]
        written = core_schema.union_schema([core_schema.literal_schema(words), union]) if words else union
        return core_schema.no_info_before_validator_function(
            lambda value: self._opened(value, members), union, json_schema_input_schema=written
        )

    def _branch(self, value: object) -> str:
        return f"{BRANCH}{value[self.key] if isinstance(value, dict) else getattr(value, self.key)}"

    def _opened(self, value: object, members: Mapping[str, type[Spec]]) -> object:
        """``value`` as a spec or a mapping that names its member; all else is a problem."""
        if isinstance(value, tuple(members.values())):
            return value
        if self.words and isinstance(value, str):
            return self._from_word(value, members)
        if not isinstance(value, dict):
            ways = f"one of {', '.join(members)}, or a mapping" if self.words else "a mapping"
            raise problem(f"must be {ways} with '{self.key}', found {found(value)}")
        word = value.get(self.key)
        if not isinstance(word, str) or word not in members:
            raise problems([((self.key,), self._refusal(word, members, given=self.key in value))], value)
        return value

    def _from_word(self, word: str, members: Mapping[str, type[Spec]]) -> dict[str, str]:
        if word not in members:
            raise problem(self._refusal(word, members, given=True))
        needed = _required(members[word])
        if needed:
            mapping = ", ".join([f"{self.key}: {word}", *(f"{name}: ..." for name in needed)])
            raise problem(f"'{word}' needs {' and '.join(needed)}; write {{{mapping}}}")
        return {self.key: word}

    def _refusal(self, word: object, members: Mapping[str, type[Spec]], *, given: bool) -> str:
        if isinstance(word, str):
            return unknown(f"unknown {self.noun} {shown(word)}", word, members, all_called="it is one of")
        problem_ = f"must be a word, found {found(word)}" if given else "required field is missing"
        return f"{problem_}; it is one of: {', '.join(members)}"


@dataclass(frozen=True)
class OrText:
    """Annotation of a spec that may be written as nothing but the text of its field ``name``."""

    name: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        spec = handler(source)
        written = core_schema.union_schema([handler.generate_schema(Text), spec])
        return core_schema.no_info_before_validator_function(self._opened, spec, json_schema_input_schema=written)

    def _opened(self, value: object) -> object:
        return value if isinstance(value, dict | Spec) else {self.name: value}


def _required(member: type[Spec]) -> list[str]:
    return [name for name, field in member.model_fields.items() if field.is_required()]
