"""Faults in files: truncated, lost, or an index that points elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from graftkit.checkpoint.write import INDEX
from graftkit.selftest.copies import edit_json, parts, set_value, write_shards
from graftkit.selftest.subject import NotApplicable, Subject, first


def last_shard(subject: Subject) -> str:
    """The last weight file."""
    return list(subject.checkpoint.shards)[-1]


def truncate(directory: Path, _: Subject, name: str) -> None:
    """Lose the last byte."""
    with (directory / name).open("r+b") as file:
        file.truncate((directory / name).stat().st_size - 1)


def index(subject: Subject) -> str:
    """The entry of the first tensor in an index."""
    if len(subject.checkpoint.tensors) < 2:
        raise NotApplicable("one tensor makes no two shards")
    return next(iter(subject.checkpoint.tensors))


def wrong_shard(directory: Path, _: Subject, name: str) -> None:
    """Point a tensor of the index at the other of two shards."""
    write_shards(directory, parts(directory, 2))
    weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
    other = next(file for file in weight_map.values() if file != weight_map[name])
    edit_json(directory, INDEX, lambda value: value["weight_map"].update({name: other}))


def two_homes(directory: Path, _: Subject, name: str) -> None:
    """Store a tensor in both of two shards: the last one to be read would win."""
    one, other = parts(directory, 2)
    write_shards(directory, [one, {**other, name: one[name]}])


def generation(subject: Subject) -> str:
    """generation_config.json."""
    subject.document("generation_config.json")
    return "generation_config.json"


def tokenizer(subject: Subject) -> str:
    """tokenizer.json."""
    subject.document("tokenizer.json")
    return "tokenizer.json"


def lose(directory: Path, _: Subject, name: str) -> None:
    """Lose the file."""
    (directory / name).unlink()


def pooling(subject: Subject) -> str:
    """The config of a module behind the model, such as a pooling."""
    configs = (path for path in subject.checkpoint.carried if "/" in path and path.endswith(".json"))
    return str(first(configs, "no modules behind the model"))


def other_pooling(directory: Path, _: Subject, name: str) -> None:
    """Change the config of the module."""
    set_value(directory, name, "pooling_mode_cls_token", "changed")
