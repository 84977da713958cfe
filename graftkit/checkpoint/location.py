"""Where a checkpoint is: a local folder, or a snapshot in the hub's cache that is filled when it must be."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from graftkit.checkpoint.file_kinds import MODEL_WEIGHTS, TRAINING_STATE
from graftkit.checkpoint.files import is_plain_relative
from graftkit.checkpoint.inventory import OTHER_FOLDERS
from graftkit.checkpoint.weights import INDEX, SINGLE
from graftkit.errors import InputRejected, RecipeError, StorageFault, printable
from graftkit.recipe.paths import expand_path

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
#: What is not downloaded: weights in other formats, the second copies of Mistral's and of half-precision variants, states of
#: trainings, and what only a reader of the hub's page looks at.
_IGNORED = (
    *MODEL_WEIGHTS,
    *TRAINING_STATE,
    *(f"{folder}/*" for folder in OTHER_FOLDERS),
    "model.fp16*.safetensors",
    *(
        f"*.{ending}"
        for ending in ("png", "jpg", "jpeg", "gif", "svg", "webp", "pdf", "mp4", "wav", "ipynb", "parquet")
    ),
    ".*",
)


@dataclass(frozen=True, slots=True)
class Location:
    """``name`` as the recipe gave it, the folder that it means, and the commit if it came from the hub."""

    name: str
    directory: Path
    revision: str | None


def locate(base_model: str, revision: str | None = None) -> Location:
    """Return the folder that ``base_model`` means: an existing local folder, else the hub repository of that id.

    The hub's cache is asked first, and the network only for what it does not hold. The variables HF_HOME, HF_HUB_CACHE,
    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to huggingface_hub.

    Raises:
        RecipeError: a local folder is given with a revision, or the revision is no name of one.
        InputRejected: there is neither such a folder nor such a repository, or access to it is refused.
        StorageFault: the hub could not be reached or the download failed.
    """
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
    directory = _from_hub(base_model, revision)
    return Location(base_model, directory, directory.name)


def _local(base_model: str) -> Path:
    try:
        return Path(expand_path(base_model))
    except ValueError as error:
        raise InputRejected(f"{printable(base_model)}: is neither a folder nor a hub id: {printable(error)}") from error


def cached_folder(name: str, revision: str | None = None) -> Path | None:
    """The snapshot of a hub id that lies whole in the cache; None where there is none. The network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=list(_IGNORED), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):  # incomplete ones are OSErrors too
        return None


def _from_hub(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    try:
        cached = _cached(repo_id, revision)
    except HFValidationError as error:
        raise InputRejected(
            f"{printable(repo_id) or 'an empty name'}: is neither a folder nor a hub id{_nearest(repo_id)}"
        ) from error
    if cached is not None and (constants.HF_HUB_OFFLINE or not _missing(cached, *_TOKENIZERS)):
        missing = _missing(cached)
        if missing:
            raise InputRejected(
                f"{repo_id}: the cached commit {cached.name} has no {printable(missing)} and HF_HUB_OFFLINE is set; "
                "unset it to complete the download"
            )
        return cached
    return _download(repo_id, revision)


def _cached(repo_id: str, revision: str | None) -> Path | None:
    """Return the cached snapshot, or None; a listing of the commit, where one is cached, tells what it must hold."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(repo_id, revision=revision, ignore_patterns=list(_IGNORED), local_files_only=True)
        )
    except IncompleteSnapshotError as error:
        if not constants.HF_HUB_OFFLINE:
            return None
        found = _first_line(error).split(". ")[0]
        raise InputRejected(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to complete the download: {found}") from error
    except LocalEntryNotFoundError:
        return None


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, revision=revision, ignore_patterns=list(_IGNORED)))
    except GatedRepoError as error:
        raise InputRejected(
            f"{repo_id}: is gated; accept its terms on the hub, then run `hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise InputRejected(f"{repo_id}: has no revision '{printable(revision)}' on the hub") from error
    except RepositoryNotFoundError as error:
        raise InputRejected(
            f"{repo_id}: is neither a folder nor a hub repository, or it is private and HF_TOKEN does not open it"
            f"{_nearest(repo_id)}"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            at = f" at revision '{printable(revision)}'" if revision else ""
            raise InputRejected(
                f"{repo_id}: is no folder and{at} not in the hub's cache, and HF_HUB_OFFLINE is set{_nearest(repo_id)}"
            ) from error
        raise StorageFault(
            f"{repo_id}: is not wholly cached, and the hub cannot be reached: {_first_line(error)}"
        ) from error
    except HfHubHTTPError as error:
        raise StorageFault(f"{repo_id}: the hub refused the download: {_first_line(error)}") from error
    except OSError as error:
        raise StorageFault(f"{repo_id}: the download failed: {_first_line(error)}") from error


def _missing(directory: Path, *wanted: str) -> str | None:
    """Return a file that the snapshot lacks: the config, a weight file, or all of ``wanted``."""
    if not (directory / "config.json").exists():
        return "config.json"
    if wanted and not any((directory / name).exists() for name in wanted):
        return wanted[0]
    if (directory / SINGLE).exists():
        return None
    try:
        shards = set(json.loads((directory / INDEX).read_bytes())["weight_map"].values())
        return next((str(shard) for shard in sorted(shards) if not (directory / shard).exists()), None)
    except OSError:
        return f"{SINGLE} or {INDEX}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # present but malformed: whoever opens the checkpoint says what is wrong


def _nearest(base_model: str) -> str:
    """Return a question that names the local folder whose path is nearest to ``base_model``, if one is near."""
    path = _local(base_model)
    try:
        siblings = sorted(entry.name for entry in os.scandir(path.parent) if entry.is_dir())
    except (OSError, ValueError):
        return ""
    match = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean the folder '{printable(path.parent / match[0])}'?" if match else ""


def _first_line(error: Exception) -> str:
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
