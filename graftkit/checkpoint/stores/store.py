"""A folder of a store that fsspec opens, such as ``s3://bucket/model``, and where its copies lie on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.files import is_plain_relative
from graftkit.checkpoint.hub.requests import first_line
from graftkit.errors import GraftkitError, InputRejected, RecipeError, StorageFault, printable


@dataclass(frozen=True, slots=True)
class Store:
    """The folder ``root`` of the file system ``fs``, which is what ``url`` means."""

    url: str
    fs: Any
    root: str

    def place_of(self, relative: str) -> str:
        """What the file system calls a file of the folder."""
        return f"{self.root.rstrip('/')}/{relative}"

    def files(self) -> dict[str, dict[str, Any]]:
        """What the store says of each file below the folder, by its relative path; empty where there is none.

        Raises:
            InputRejected: the folder is a file, or a file has a name that no folder here can have.
        """
        self.fs.invalidate_cache()
        if not self.fs.exists(self.root):
            return {}
        found = {}
        for place, said in self.fs.find(self.root, detail=True).items():
            relative = place[len(self.root) :].lstrip("/")
            if not relative:
                raise InputRejected(f"{printable(self.url)}: is a file; name the folder that it is in")
            if not is_plain_relative(relative):
                raise InputRejected(f"{printable(self.url)}: {printable(relative)!r} is no plain path of a file")
            found[relative] = dict(said)
        return found


def open_store(url: str) -> Store:
    """Open the file system of a URL, under :func:`store_faults`; nothing is read yet."""
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    return Store(url, *url_to_fs(url))


@contextlib.contextmanager
def store_faults(url: str, field: str, doing: str) -> Iterator[None]:
    """Say in one line what a store answered; ``field`` is that of the recipe, ``doing`` what failed.

    Raises:
        RecipeError: fsspec knows no such kind of store.
        StorageFault: the library of that kind is missing, or the store cannot be reached, refuses, or fails.
    """
    shown = printable(url)
    try:
        yield
    except GraftkitError:
        raise
    except ImportError as error:
        raise StorageFault(
            f"{shown}: a library is missing that reaches such stores: {first_line(error)}; pip install 'graftkit[stores]' and"
            " what it names"
        ) from error
    except Exception as error:  # each library of a store raises errors of its own
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            raise RecipeError(f"{field}: '{shown}': fsspec knows no such store") from error
        raise StorageFault(f"{shown}: {doing} failed: {first_line(error)}") from error


def copies(url: str, kind: str) -> Path:
    """The folder on this machine for what is downloaded from a URL, or waits to be uploaded to it.

    It lies below GRAFTKIT_CACHE, else below ``graftkit`` in XDG_CACHE_HOME or ``~/.cache``.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("GRAFTKIT_CACHE") or Path(cache, "graftkit")).expanduser()
    return home.absolute() / kind / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]
