"""An output in a store: it is made and verified here, then uploaded, and what makes it loadable comes last.

Stores have no rename of a folder. So a reader finds either no config, or one beside which every other file lies whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from graftkit.checkpoint.output_place import REPLACEABLE
from graftkit.checkpoint.stores.store import Store, copies, open_store, store_faults
from graftkit.checkpoint.weights import INDEX
from graftkit.errors import Locked, RecipeError, StorageFault, printable

#: What a loader looks for first, in the order in which it is uploaded, behind everything else.
LAST = (INDEX, ".metadata", "adapter_config.json", "config.json")

#: What tells that a folder is an output of graftkit, and is uploaded first: whoever finds a part may replace it.
FIRST = "graft_report.json"


def refuse_store_output(url: str, *, base: str, overwrite: bool) -> None:
    """Refuse an output in a store that is there and is not to be replaced, or is the ``base``, holds it or lies in it.

    Raises:
        RecipeError: it is; or fsspec knows no such store.
        StorageFault: the store cannot be asked.
    """
    place, end = f"output: {printable(url)}", url.rstrip("/") + "/"
    start = base.rstrip("/") + "/"
    if end.startswith(start) or start.startswith(end):
        raise RecipeError(f"{place} is, holds or lies in the source {printable(base)}; name another output")
    with store_faults(url, "output", "asking the store"):
        store = open_store(url)
        if not store.root.strip("/"):
            raise RecipeError(f"{place} names no folder of the store; name one")
        files = store.files()
        if files and not overwrite:
            raise RecipeError(f"{place} exists; name another output, or replace it with --overwrite")
        if files and not any(name in files for name in REPLACEABLE):
            raise RecipeError(
                f"{place} is not a checkpoint (it has no {' or '.join(REPLACEABLE)}); name another output"
            )


@contextlib.contextmanager
def uploaded(url: str) -> Iterator[Path]:
    """Give a folder that does not exist yet; what lies there at the end is uploaded to ``url`` and removed here.

    What is made nobody else can make at a time, on this machine. If the upload fails what was made is kept, and the message names it.

    Raises:
        Locked: another run writes the same output.
        StorageFault: not all was uploaded.
    """
    home = copies(url, "uploads")
    home.mkdir(parents=True, exist_ok=True)
    folder = home / (url.rstrip("/").rpartition("/")[2] or "output")
    with (home / ".lock").open("w") as lock:
        if not _locked(lock):
            raise Locked(f"{printable(url)}: another run is writing it; wait for it to end")
        shutil.rmtree(folder, ignore_errors=True)
        yield folder
        try:
            with store_faults(url, "output", "the upload"):
                _upload(folder, open_store(url))
        except StorageFault as error:
            raise StorageFault(
                f"{error}; the output is not whole there, and not loadable; whole and verified it lies in {printable(folder)}"
                " until the next run"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _upload(folder: Path, store: Store) -> None:
    """Upload every file of ``folder``, and remove what else the store has there; what fails where nothing was leaves nothing."""
    files = sorted((_files(folder)), key=lambda name: (_turn(name), name))
    before = store.files()
    for name in reversed(LAST):  # from here on nobody loads what is to be replaced
        for old in before:
            if old.rpartition("/")[2] == name:
                store.fs.rm_file(store.place_of(old))
    try:
        for name in files:
            _put(folder / name, store, name)
    except BaseException:
        for name in files if not before else ():
            with contextlib.suppress(Exception):
                store.fs.rm_file(store.place_of(name))
        raise
    for old in before.keys() - set(files):
        if store.fs.exists(store.place_of(old)):
            store.fs.rm_file(store.place_of(old))


def _put(path: Path, store: Store, name: str) -> None:
    """Upload one file, and see that all of it arrived."""
    place = store.place_of(name)
    store.fs.makedirs(place.rpartition("/")[0], exist_ok=True)
    store.fs.put_file(str(path), place)
    store.fs.invalidate_cache()
    if (size := store.fs.info(place)["size"]) != path.stat().st_size:
        raise StorageFault(
            f"{printable(store.url)}: {printable(name)}: arrived as {size} of {path.stat().st_size} bytes"
        )


def _turn(name: str) -> int:
    last = name.rpartition("/")[2]
    return LAST.index(last) + 1 if last in LAST else -(name == FIRST)


def _files(folder: Path) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        yield from (str(Path(root, name).relative_to(folder)) for name in names)
