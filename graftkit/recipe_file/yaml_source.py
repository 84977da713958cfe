"""YAML text -> plain values and the place of each, for a small and boring part of YAML.

A single bounded document of mappings with text keys, lists and scalars. Anchors, aliases, tags and merge keys are
refused; :mod:`graftkit.recipe_file.yaml_scalars` says what a plain scalar means.
"""

from collections.abc import Callable
from dataclasses import replace

import yaml

from graftkit.recipe_file.problems import Document, Path, Place
from graftkit.recipe_file.wording import encodable, found, shown
from graftkit.recipe_file.yaml_scalars import MEANINGS, add_resolvers

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000

#: A line of the text, from 1 on -> the place that messages name.
PlaceOfLine = Callable[[int], Place]


class _Refused(Exception):
    """A part of YAML that recipes do not use; ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Reader(yaml.SafeLoader):
    """Composes nodes; nothing is ever constructed from a tag."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - filled by add_resolvers

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._nodes += 1
        self._depth += 1
        if refusal := self._refusal(event):
            raise _Refused(event.start_mark.line + 1, refusal)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refusal(self, event: yaml.AliasEvent | yaml.ScalarEvent | yaml.CollectionStartEvent) -> str | None:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            return "anchors and aliases (&name, *name) are not allowed; write the value out, or quote it if it is text"
        if event.tag is not None:
            return f"the tag {shown(event.tag)} is not allowed; quote the value if it is text that begins with !"
        if self._depth > MAX_DEPTH:
            return f"nested deeper than {MAX_DEPTH} levels"
        return f"more than {MAX_NODES} values" if self._nodes > MAX_NODES else None


add_resolvers(_Reader)


def parse_yaml(text: str, place_of: PlaceOfLine) -> Document:
    """Read ``text``. What is wrong with it is among the problems of the document, which is None where nothing is left."""
    document = Document(None)
    node = reader = None
    try:
        _check_characters(text)
        reader = _Reader(text)
        node = reader.get_single_node()
    except _Refused as refused:
        document.add((), str(refused), place_of(refused.line))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.add((), _in_words(error), place_of(mark.line + 1 if mark else 1))
    except (ValueError, OverflowError):  # PyYAML converts the digits of escapes and directives unchecked
        line = reader.line + 1 if reader else 1
        document.add((), "not valid YAML: a number in an escape or a directive is out of range", place_of(line))
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


def _build(node: yaml.Node, path: Path, place: Place, document: Document, place_of: PlaceOfLine) -> object:
    """Return the value of ``node``; its place and all places inside it are noted."""
    document.places[path] = place
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, document, place_of)
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(item, (*path, index), place_of(item.start_mark.line + 1), document, place_of)
            for index, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        document.places[path] = replace(place, text=node.value)
    return MEANINGS.get(node.tag, _joined_surrogates)(node.value)


def _build_mapping(node: yaml.MappingNode, path: Path, document: Document, place_of: PlaceOfLine) -> dict[str, object]:
    mapping: dict[str, object] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if refusal := _key_refusal(key_node):
            document.add(path, refusal, place_of(line))
            continue
        key = encodable(key_node.value)
        if key in lines:
            document.add((*path, key), f"given a second time, after line {lines[key]}", place_of(line))
        else:
            lines[key] = line
            mapping[key] = _build(value_node, (*path, key), place_of(line), document, place_of)
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
