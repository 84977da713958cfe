"""The copy of a checkpoint in a store, which is brought here file by file, and again only where the store has another file."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any

from graftkit.checkpoint.hub.snapshot import IGNORED
from graftkit.checkpoint.output_place import require_space
from graftkit.checkpoint.stores.store import Store, copies, open_store, store_faults
from graftkit.errors import InputRejected, StorageFault, printable

#: What the store said of each file when it was brought, beside the copy.
RECORD = ".graftkit-store.json"


def download_checkpoint(url: str) -> Path:
    """Bring the checkpoint at ``url`` here, and return its folder; files that were brought before are kept.

    A file that is brought appears whole. What the hub's snapshots leave out is left out: weights in other formats, states of trainings.

    Raises:
        RecipeError, StorageFault: see :func:`~graftkit.checkpoint.stores.store.store_faults`.
        InputRejected: there is no folder with files.
    """
    with store_faults(url, "base_model", "the download"):
        store = open_store(url)
        listed = {name: said for name, said in store.files().items() if _is_wanted(name)}
        if not listed:
            raise InputRejected(f"{printable(url)}: there is no folder with files; name that of a checkpoint")
        folder = copies(url, "downloads") / (store.root.rstrip("/").rpartition("/")[2] or "model")
        folder.mkdir(parents=True, exist_ok=True)
        before = _recorded(folder)
        _remove_others(folder, listed)
        new = {
            name: said
            for name, said in listed.items()
            if before.get(name) != _told(said) or not (folder / name).is_file()
        }
        require_space(folder, sum(int(said.get("size") or 0) for said in new.values()))
        for name, said in new.items():
            _bring(store, name, said, folder)
            before[name] = _told(said)
            _write(folder / RECORD, json.dumps({name: before[name] for name in listed if name in before}))
    return folder


def _is_wanted(name: str) -> bool:
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)


def _told(said: dict[str, Any]) -> str:
    """What the store says of a file: size, times, digests, whatever it has."""
    return repr(sorted((key, str(value)) for key, value in said.items()))


def _recorded(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remove_others(folder: Path, listed: dict[str, dict[str, Any]]) -> None:
    """Remove what the store has no more, so that the copy is no mixture."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if name != RECORD and str(path.relative_to(folder)) not in listed:
                path.unlink()


def _bring(store: Store, name: str, said: dict[str, Any], folder: Path) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        store.fs.get_file(store.place_of(name), str(part))
        size = said.get("size")
        if size is not None and part.stat().st_size != size:
            raise StorageFault(
                f"{printable(store.url)}: {printable(name)}: came as {part.stat().st_size} bytes of {size}; run again"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)
