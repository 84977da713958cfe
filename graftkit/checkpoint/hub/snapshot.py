"""The snapshot of a hub repository at one commit: in the hub's cache, or filled from the hub, with its weights or without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from graftkit.checkpoint.file_kinds import MODEL_WEIGHTS, TRAINING_STATE
from graftkit.checkpoint.files import is_plain_relative
from graftkit.checkpoint.hub.file import HubFile
from graftkit.checkpoint.hub.progress import Bytes, bars_to
from graftkit.checkpoint.hub.requests import first_line, hub_faults, limited_waits
from graftkit.checkpoint.inventory import OTHER_FOLDERS
from graftkit.checkpoint.weights import INDEX, SINGLE
from graftkit.errors import InputRejected, NotThere, printable

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
#: What holds weights, of which headers are read where nothing else is needed.
_WEIGHTS = "*.safetensors"
#: What is not downloaded: weights in other formats, the second copies of Mistral's and of half-precision variants, states of
#: trainings, and what only a reader of the hub's page looks at.
IGNORED = (
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


def cached_folder(name: str, revision: str | None = None) -> Path | None:
    """The snapshot of a hub id that lies whole in the cache; None where there is none. The network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=list(IGNORED), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):  # incomplete ones are OSErrors too
        return None


def find_snapshot(repo_id: str, revision: str | None, *, near: str = "") -> Path | None:
    """The snapshot that lies whole in the cache; None where the network has to be asked, and may be.

    ``near`` is what a message says behind a name that is no hub id.

    Raises:
        InputRejected: the name is no hub id, or HF_HUB_OFFLINE is set and something is missing.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    try:
        cached = _cached(repo_id, revision)
    except HFValidationError as error:
        raise NotThere(f"{printable(repo_id) or 'an empty name'}: is neither a folder nor a hub id{near}") from error
    if cached is None or not (constants.HF_HUB_OFFLINE or not _missing(cached, *_TOKENIZERS)):
        return None
    if missing := _missing(cached):
        raise InputRejected(
            f"{repo_id}: the cached commit {cached.name} has no {printable(missing)} and HF_HUB_OFFLINE is set; "
            "unset it to complete the download"
        )
    return cached


def _cached(repo_id: str, revision: str | None) -> Path | None:
    """Return the cached snapshot, or None; a listing of the commit, where one is cached, tells what it must hold."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, ignore_patterns=list(IGNORED), local_files_only=True))
    except IncompleteSnapshotError as error:
        if not constants.HF_HUB_OFFLINE:
            return None
        found = first_line(error).split(". ")[0]
        raise InputRejected(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to complete the download: {found}") from error
    except LocalEntryNotFoundError:
        return None


def download(
    repo_id: str, revision: str | None, *, weights: bool = True, near: str = "", progress: Bytes | None = None
) -> Path:
    """Fill the snapshot of a revision and return its folder, whose name is the commit; without ``weights`` all but those.

    Without ``progress`` huggingface_hub shows bars of its own, where it may.

    Raises:
        InputRejected, StorageFault: see :func:`~graftkit.checkpoint.hub.requests.hub_faults`, which says ``near`` too.
    """
    from huggingface_hub import snapshot_download

    ignored = [*IGNORED, *([] if weights else [_WEIGHTS])]
    with hub_faults(repo_id, revision, near=near), limited_waits():
        bars = None if progress is None else bars_to(progress)
        return Path(snapshot_download(repo_id, revision=revision, ignore_patterns=ignored, tqdm_class=bars))


def not_downloaded(repo_id: str, snapshot: Path) -> Mapping[str, HubFile]:
    """The weight files of the snapshot's commit that do not lie in it, by their relative paths.

    Raises:
        InputRejected, StorageFault: see :func:`~graftkit.checkpoint.hub.requests.hub_faults`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # said in words alone

    commit = snapshot.name
    with hub_faults(repo_id, commit), limited_waits():
        listed = HfApi().list_repo_tree(repo_id, recursive=True, revision=commit)
        sizes = {entry.path: entry.size for entry in listed if isinstance(entry, RepoFile)}
    wanted = filter_repo_objects(sizes, allow_patterns=_WEIGHTS, ignore_patterns=list(IGNORED))
    return {
        name: HubFile(repo_id, commit, name, sizes[name], snapshot / name)
        for name in wanted
        if is_plain_relative(name) and not (snapshot / name).exists()
    }


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
