"""What a recipe reads, and whether it is still the same: the files of its base, and every file and folder that it names.

Nothing is read but the names, sizes and times of files, so that the question costs no more than that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graftkit.recipe_file.paths import expand_path

#: Relative path of a file -> its inode, size in bytes, and nanoseconds of its last change; a file itself is ".".
Files = Mapping[str, list[int]]

#: What lies in a folder that a recipe reads.
CONFIGS = ("config.json", "adapter_config.json")


def input_files(recipe: Mapping[str, Any]) -> dict[str, Files]:
    """The files of the base and of whatever else a recipe names, by the dotted place of the name in its plain fields.

    Any text of an operation that is the path of a file counts, or a checkpoint's or an adapter's folder or hub id: a token may
    be "/". A base that is not on this machine is not in it.
    """
    found = {}
    base = local_folder(recipe["base_model"], recipe.get("revision"))
    if base is not None:
        found["base_model"] = _files(base)
    for where, text in _texts(recipe["operations"], "operations"):
        path = local_folder(text)
        if path is not None and (path.is_file() or any((path / name).is_file() for name in CONFIGS)):
            found[where] = _files(path)
    return found


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """What lies at a path, or the snapshot of a hub id in the cache; None where there is neither."""
    local = _existing(name)
    if local is not None:
        return local
    cache = _hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = (cache / "refs" / (revision or "main")).read_text().strip()
    except (OSError, ValueError):
        commit = revision or ""
    snapshot = cache / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def _hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads, by the variables that it reads itself."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _existing(text: str) -> Path | None:
    try:
        path = Path(expand_path(text))
        return path if path.exists() else None
    except (OSError, ValueError):  # too long for a name, or a null character
        return None


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield every text below ``value`` with its dotted place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{place}.{index}")


def _files(path: Path) -> Files:
    """The files of a folder, hidden ones left out, links followed; or the file itself."""
    found = {}
    for root, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                file = Path(root, name)
                found[str(file.relative_to(path))] = _stamp(file)
    return found or {".": _stamp(path)}


def _stamp(file: Path) -> list[int]:
    try:
        status = file.stat()
    except OSError:  # a link to nothing
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns]
