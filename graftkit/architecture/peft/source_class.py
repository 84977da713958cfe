"""The class that an adapter was trained on, as far as its config tells, or one that has all of its modules."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from graftkit.architecture.peft.adapter_modules import modules_of, modules_of_class
from graftkit.architecture.peft.exchanged_prefix import older_names
from graftkit.architecture.peft.task import TASKS
from graftkit.architecture.related_class import related_skeleton
from graftkit.architecture.skeleton import Skeleton, architecture_of, build_skeleton
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.hub.snapshot import cached_folder
from graftkit.errors import GraftkitError

Build = Callable[[], Skeleton]


def named_folder(named: str, revision: str | None) -> Path | None:
    """The folder of a base that an adapter's config names, where it is on this machine."""
    path = Path(os.path.expanduser(named))
    return path if path.is_dir() else cached_folder(named, revision)


def find_source(adapter: Adapter, config: Mapping[str, Any]) -> Build | None:
    """What builds the class on which ``adapter`` was trained, for a base with this ``config``.

    The checkpoint that the adapter's config names, where it is on this machine; the class that peft has noted; the class for the
    adapter's task, or the one without a head, of this config or of those inside it. Every module has to be there, by its
    name or by one that transformers renames to it. None where no class is found.
    """
    wanted = modules_of(adapter).keys()
    for build in _candidates(adapter.config, config):
        try:
            skeleton = build()
        except GraftkitError:
            continue
        strange = wanted - modules_of_class(skeleton).keys()
        if not strange or older_names(skeleton, strange).keys() == strange:
            return build
    return None


def _candidates(adapter: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Build]:
    from transformers.models.auto import modeling_auto

    named, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    mapping = adapter.get("auto_mapping")
    noted = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    folder = named_folder(named, revision) if isinstance(named, str) and named else None
    if folder is not None:
        there = str(folder)
        yield lambda: _named(there, noted)
    if noted:
        yield lambda: related_skeleton(config, noted)
    types = [one["model_type"] for one in _configs(config) if isinstance(one.get("model_type"), str)]
    for table in (TASKS.get(adapter.get("task_type") or ""), "MODEL_MAPPING_NAMES"):
        for kind in types if table else ():
            names = getattr(modeling_auto, table or "").get(kind)
            for name in (names,) if isinstance(names, str) else names or ():
                yield functools.partial(related_skeleton, config, name)
    yield lambda: build_skeleton(config)


def _named(folder: str, noted: str | None) -> Skeleton:
    config = Checkpoint.open(folder).config
    return related_skeleton(config, noted or architecture_of(config))


def _configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a config and those inside it."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping) and "model_type" in value:
            yield from _configs(value)
