"""Where a checkpoint is: a local folder, a snapshot in the hub's cache that is filled when it must be, or the copy of a store's."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graftkit.checkpoint.files import is_plain_relative
from graftkit.checkpoint.hub import snapshot
from graftkit.checkpoint.hub.file import HubFile
from graftkit.errors import InputRejected, NotThere, RecipeError, printable
from graftkit.recipe_file.paths import expand_path, is_url


@dataclass(frozen=True, slots=True)
class Location:
    """``name`` as the recipe gave it, the folder that it means, and the commit if it came from the hub.

    ``on_hub`` are the weight files that lie on the hub alone, by their relative paths.
    """

    name: str
    directory: Path
    revision: str | None
    on_hub: Mapping[str, HubFile] = field(default_factory=dict)


def locate(base_model: str, revision: str | None = None, *, weights: bool = True) -> Location:
    """Return the folder that ``base_model`` means: an existing local folder, the copy of a URL, else a hub repository.

    The hub's cache is asked first, and the network only for what it does not hold; without ``weights`` those stay on the hub. The
    revision is pinned to a commit by the first request. The variables HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and
    HF_HUB_OFFLINE mean what they mean to huggingface_hub.

    Raises:
        RecipeError: a local folder is given with a revision, or the revision is no name of one.
        InputRejected: there is neither such a folder nor such a repository, or access to it is refused.
        StorageFault: the hub could not be reached or the download failed.
    """
    if is_url(base_model):
        if revision is not None:
            raise RecipeError(f"revision: '{printable(base_model)}' is in a store, which has none; remove the revision")
        from graftkit.checkpoint.stores.download import download_checkpoint

        return Location(base_model, download_checkpoint(base_model), None)
    path = _local(base_model)
    if base_model and path.is_dir():
        if revision is not None:
            raise RecipeError(
                f"revision: '{printable(base_model)}' is a local folder, which has none; remove the revision"
            )
        return Location(base_model, path, None)
    if base_model and path.exists():
        raise InputRejected(f"{printable(base_model)}: is a file; name the folder that it is in")
    if revision is not None and not is_plain_relative(revision):
        raise RecipeError(f"revision: '{printable(revision)}' is not the name of a branch, a tag or a commit")
    near = _nearest(base_model)
    directory = snapshot.find_snapshot(base_model, revision, near=near)
    if directory is not None:
        return Location(base_model, directory, directory.name)
    directory = snapshot.download(base_model, revision, weights=weights, near=near)
    on_hub = {} if weights else snapshot.not_downloaded(base_model, directory)
    return Location(base_model, directory, directory.name, on_hub)


def _local(base_model: str) -> Path:
    try:
        return Path(expand_path(base_model))
    except ValueError as error:
        raise NotThere(f"{printable(base_model)}: is neither a folder nor a hub id: {printable(error)}") from error


def _nearest(base_model: str) -> str:
    """Return a question that names the local folder whose path is nearest to ``base_model``, if one is near."""
    path = _local(base_model)
    try:
        siblings = sorted(entry.name for entry in os.scandir(path.parent) if entry.is_dir())
    except (OSError, ValueError):
        return ""
    match = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean the folder '{printable(path.parent / match[0])}'?" if match else ""
