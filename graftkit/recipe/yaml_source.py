"""YAML text -> plain values and the place of each, for a small and boring part of YAML.

A single bounded document of mappings with text keys, lists and scalars. Anchors, aliases, tags and merge keys are
refused; :mod:`graftkit.recipe.yaml_scalars` says what a plain scalar means.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import yaml

from graftkit.errors import RecipeError, printable
from graftkit.recipe.problems import Document, Place
from graftkit.recipe.spec import Path
from graftkit.recipe.wording import found, shown
from graftkit.recipe.yaml_scalars import MEANINGS, add_resolvers

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 200_000

#: A line of the text, from 1 on -> the place that messages name.
PlaceOfLine = Callable[[int], Place]


class _Refused(Exception):
    """A part of YAML that recipes do not use; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Reader(yaml.SafeLoader):
    """Composes nodes; nothing is ever constructed from a tag."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self._nodes += 1
        self._depth += 1
        if refusal := self._refusal(event):
            raise _Refused(event.start_mark.line + 1, refusal)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refusal(self, event: Any) -> str | None:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            return "anchors and aliases (&name, *name) are not allowed; write the value out, or quote it if it is text"
        if event.tag is not None:
            return f"the tag {shown(event.tag)} is not allowed; quote the value if it is text that begins with !"
        if self._depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        return f"more than {MAX_NODES} values" if self._nodes > MAX_NODES else None


add_resolvers(_Reader)


def parse_yaml(text: str, place_of: PlaceOfLine) -> Document:
    """Read ``text``; duplicate and non-text keys are among the problems of the document that is returned.

    Raises:
        RecipeError: one problem, where the text is no such document at all.
    """
    try:
        _check_characters(text)
        node = _Reader(text).get_single_node()
    except _Refused as refused:
        raise _error(place_of(refused.line), str(refused)) from refused
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _error(place_of(mark.line + 1 if mark else 1), _in_words(error)) from error
    document = Document(None)
    if node is not None:
        document.data = _build(node, (), place_of(node.start_mark.line + 1), document, place_of)
    return document


def _check_characters(text: str) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _Refused(1, f"larger than {MAX_BYTES} bytes")
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise _Refused(line, f"holds the character U+{ord(bad[0]):04X}; write it as an escape inside double quotes")


def _in_words(error: yaml.MarkedYAMLError) -> str:
    if error.context == "expected a single document in the stream":
        return "a second document begins here; a recipe is a single document"
    return ": ".join(part for part in ("not valid YAML", error.context, error.problem) if part)


def _error(place: Place, message: str) -> RecipeError:
    return RecipeError(printable(f"{place.origin}: {message}"))


def _build(node: yaml.Node, path: Path, place: Place, document: Document, place_of: PlaceOfLine) -> object:
    """The value of ``node``, whose place and all places inside it are noted."""
    document.places[path] = place
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, document, place_of)
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(item, (*path, index), place_of(item.start_mark.line + 1), document, place_of)
            for index, item in enumerate(node.value)
        ]
    if node.style is None:
        document.places[path] = replace(place, text=node.value)
    return MEANINGS.get(node.tag, _joined_surrogates)(node.value)


def _build_mapping(node: yaml.MappingNode, path: Path, document: Document, place_of: PlaceOfLine) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for key_node, value_node in node.value:
        place = place_of(key_node.start_mark.line + 1)
        if refusal := _key_refusal(key_node):
            document.add(path, refusal, place)
            continue
        inner = (*path, key_node.value)
        if inner in document.places:
            document.add(inner, f"given a second time, first at {document.places[inner].origin}", place)
        else:
            mapping[key_node.value] = _build(value_node, inner, place, document, place_of)
    return mapping


def _key_refusal(node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.ScalarNode):
        return "a key must be text, found a mapping or a list; quote it if it begins with { or ["
    if node.style is None and node.value == "<<":
        return "merge keys (<<) are not allowed; write the fields out"
    if node.tag in MEANINGS:
        meaning = found(MEANINGS[node.tag](node.value))
        return f"a key must be text, but YAML reads {shown(node.value)} as {meaning}; quote it"
    return None


def _joined_surrogates(text: str) -> str:
    r"""Join pairs such as ``\ud83d\ude00``, which JSON writes for a character beyond U+FFFF."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return text
