"""Config, generation config and the other JSON files of two checkpoints: every value that changes what is computed.

The configs are compared as transformers loads them, so that a default which is written out on one side only is no
difference. What may differ: the size of a vocabulary that grew, and the ids of roles that were given on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.skeleton import build_config
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import decode_json
from graftkit.checkpoint.file_kinds import holds_values
from graftkit.checkpoint.reading import read_range
from graftkit.checkpoint.tokenizer import TokenizerFiles
from graftkit.errors import printable

CONFIG, GENERATION = "config.json", "generation_config.json"

#: Keys that describe the file or its history, or only say whether a cache is kept: nothing is computed from them.
DESCRIBING = ("transformers_version", "_name_or_path", "_commit_hash", "_from_model_config", "use_cache")

#: Other JSON documents with values that a forward's inputs are made by; the chat template in them is the tokenizer's.
PROCESSORS = ("processor_config.json", "preprocessor_config.json")

#: Files of a tokenizer: they are compared as they load, not byte by byte.
TOKENIZER_FILES = ("vocab.json", "vocab.txt", "merges.txt", "tekken.json")

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may differ on purpose: the rows of the table, the roles of both tokenizers by content, and ``(document, place)``."""

    correspondence: Correspondence
    before: TokenizerFiles
    after: TokenizerFiles
    changes: frozenset[tuple[str, str]] = frozenset()

    def value(self, document: str, place: str, old: object, new: object) -> bool:
        """Whether the value at the dotted ``place`` of a document may have become ``new``."""
        key = place.rpartition(".")[2]
        if any(document == name and _is_below(place, changed) for name, changed in self.changes):
            return True
        ids = self.correspondence.ids
        if "vocab" in key and ids is not None and (old, new) == (ids.source, ids.result):
            return True
        role = key.removesuffix("_id")
        given = self.after.special.get(role)
        if role == key or given is None or given == self.before.special.get(role):
            return False
        return self.after.id_of(given) in (new if isinstance(new, list) else [new])


def _is_below(place: str, changed: str) -> bool:
    """Whether a change at the dotted place ``changed`` changes ``place``: it is the same, or one stands in the other.

    Without a place the document came or went as a whole.
    """
    places = (place, changed.partition("[")[0])
    return not changed or any(f"{one}.".startswith(f"{other}.") for one, other in (places, places[::-1]))


def check_documents(old: Checkpoint, new: Checkpoint, allowed: Allowed) -> Iterator[str]:
    """Yield a sentence for each value, role or file of ``new`` by which it would not do what ``old`` does.

    Raises:
        InputRejected: transformers refuses a config.
    """
    yield from config_differences(old, new, allowed)
    yield from _differences(GENERATION, _generation(old), _generation(new), allowed)
    for name in PROCESSORS:
        before, after = (dict(_flat(checkpoint.documents.get(name, {}))) for checkpoint in (old, new))
        yield from _differences(name, before, after, allowed)
    yield from _moved_roles(allowed)
    yield from _files(old, new, allowed)


def config_differences(old: Checkpoint, new: Checkpoint, allowed: Allowed) -> Iterator[str]:
    """Yield a sentence for each value of config.json, as transformers loads it, that is another one and not allowed.

    A config that became one of another model type has its own defaults; the report that says so has its digest.

    Raises:
        InputRejected: transformers refuses a config.
    """
    if (CONFIG, "model_type") not in allowed.changes:
        yield from _differences(CONFIG, _loaded(old.config), _loaded(new.config), allowed)


def _loaded(config: Mapping[str, Any]) -> dict[str, object]:
    """Every value of the config as transformers loads it, by dotted place."""
    return dict(_flat(build_config(config).to_dict()))


def _generation(checkpoint: Checkpoint) -> dict[str, object]:
    """The values of generation_config.json, or those that transformers takes from the config where there is none."""
    from transformers import GenerationConfig

    stored = checkpoint.documents.get(GENERATION)
    if stored is None:
        stored = GenerationConfig.from_model_config(build_config(checkpoint.config)).to_dict()
    return dict(_flat(stored))


def _flat(value: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value of nested mappings with its dotted place; a list is one value."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def _differences(name: str, old: Mapping[str, object], new: Mapping[str, object], allowed: Allowed) -> Iterator[str]:
    for place in dict.fromkeys([*old, *new]):
        key = place.rpartition(".")[2]
        before, after = old.get(place), new.get(place)
        same = before == after and isinstance(before, bool) == isinstance(after, bool)
        template = name in PROCESSORS and key == "chat_template"
        if same or template or key in DESCRIBING or allowed.value(name, place, before, after):
            continue
        yield f"config: {name}: {printable(place)} was {_shown(old, place)}, now {_shown(new, place)}"


def _shown(values: Mapping[str, object], place: str) -> str:
    found = values.get(place, _ABSENT)
    text = "not set" if found is _ABSENT or found is None else printable(repr(found))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _moved_roles(allowed: Allowed) -> Iterator[str]:
    """A role that goes to a new token was given to it; one that goes to another old token ends or pads elsewhere."""
    for role, old in allowed.before.special.items():
        now = allowed.after.special.get(role)
        if ("tokenizer_config.json", role) in allowed.changes:
            continue
        if now is not None and now != old and allowed.before.id_of(now) is not None:
            yield f"config: {role} was {printable(old)!r}, now it is the old token {printable(now)!r}"


def _files(old: Checkpoint, new: Checkpoint, allowed: Allowed) -> Iterator[str]:
    """JSON files, trained values such as a head, and everything in the folders of modules: lost or changed, and not on purpose."""
    for path in old.carried:
        if path in TOKENIZER_FILES or not ("/" in path or path.endswith(".json") or holds_values(path)):
            continue
        if (path, "") in allowed.changes:
            continue
        if path not in new.carried:
            yield f"config: {printable(path)} is missing"
        elif _content(old, path) != _content(new, path):
            yield f"config: {printable(path)} is not the source's"


def _content(checkpoint: Checkpoint, path: str) -> object:
    real = checkpoint.path_of(path)
    raw = read_range(real, 0, real.stat().st_size).tobytes()
    return decode_json(raw, path) if path.endswith(".json") else raw
