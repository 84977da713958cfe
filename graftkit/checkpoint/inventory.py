"""Which files of a checkpoint's folder come along, and which stay behind and why."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.checkpoint.documents import DOCUMENTS, MAX_DOCUMENT_BYTES, decode_json
from graftkit.checkpoint.file_kinds import is_model_weights, is_training_state
from graftkit.checkpoint.files import is_plain_relative, is_there, raise_error, read_bounded
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.weights import INDEX, NONE_ON_HUB, source_file
from graftkit.errors import InputRejected, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graftkit.checkpoint.hub.file import HubFile
    from graftkit.checkpoint.tensors import SourceFile

#: Folders of a hub repository that hold the model once more, in another format.
OTHER_FOLDERS = ("onnx", "openvino", "original", "coreml", "gguf")
#: Folders that belong to the tokenizer; those of sentence-transformers' modules are named in modules.json.
_TEMPLATES = "additional_chat_templates"
_MODULES = "modules.json"
#: What tells how a checkpoint was grafted.
OWN = ("graft_report.json", "graft_recipe.yaml", "graft_report.html")


def inventory(
    directory: Path, shards: Mapping[str, tuple[str, ...]], superseded: Mapping[str, str],
    on_hub: Mapping[str, HubFile] = NONE_ON_HUB, beside: tuple[str, ...] = (),
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]:  # fmt: skip
    """Return the documents, the files that come along byte for byte, and what stays behind with the reason.

    Paths are relative to ``directory``, with ``/``; a folder that stays behind is named once, with a ``/`` at the end. Files
    ``on_hub`` count as if they lay in the folder; ``beside`` names weight files that are known and not the model's.

    Raises:
        InputRejected: a file that would come along is no regular file or a link that leaves the checkpoint, or
            modules.json is malformed.
        StorageFault: the file system failed.
    """
    carried: dict[str, None] = {}
    left_behind = dict(superseded)
    tensors = frozenset(chain.from_iterable(shards.values()))
    for path, reason in _classified(directory, {*shards, *beside, *superseded, INDEX, *DOCUMENTS}, tensors, on_hub):
        if reason:
            left_behind.setdefault(path, reason)
        else:
            source_file(directory, path, on_hub)
            carried[path] = None
    documents = tuple(name for name in DOCUMENTS if is_there(directory / name))
    return documents, tuple(carried), left_behind


def _classified(
    directory: Path, known: set[str], tensors: frozenset[str], on_hub: Mapping[str, HubFile]
) -> Iterator[tuple[str, str]]:
    """Yield each file and folder but the ``known`` ones, with why it stays behind or an empty string.

    ``tensors`` names those of the model.
    """
    folders = {_TEMPLATES, *_module_folders(directory, on_hub)}
    for name in sorted(on_hub.keys() - known):
        if "/" not in name:
            yield name, _why_file_stays(directory, name, tensors, on_hub)
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if Path(entry).is_dir():  # unlike the entry's own is_dir, False for a link to itself
                if not any(f"{folder}/".startswith(f"{entry.name}/") for folder in folders):
                    yield f"{entry.name}/", _why_folder_stays(entry.name)
                elif entry.is_symlink():
                    raise InputRejected(f"{entry.name}: is a link to a folder; put a copy in its place")
            elif entry.name not in known:
                yield entry.name, _why_file_stays(directory, entry.name, tensors, on_hub)
    for folder in sorted(folders):
        below = (name for name in sorted(on_hub) if name.startswith(f"{folder}/"))
        for path in chain(_files_below(directory, folder), below):
            yield path, "hidden" if any(part.startswith(".") for part in path.split("/")) else ""


def _why_folder_stays(name: str) -> str:
    if name.startswith("."):
        return "hidden"
    if name in OTHER_FOLDERS:
        return "the source's weights in another format, stale in the output"
    return "a folder that modules.json does not name"


def _why_file_stays(directory: Path, name: str, tensors: frozenset[str], on_hub: Mapping[str, HubFile]) -> str:
    lower = name.lower()
    if name.startswith("."):
        return "hidden"
    if is_training_state(name):
        return "the state of the training that made the source"
    if lower.endswith(".safetensors"):
        own = is_model_weights(name) or _shares_tensors(source_file(directory, name, on_hub), name, tensors)
        return "weights that transformers does not load from this folder" if own else ""
    if is_model_weights(name) or (lower.endswith(".index.json") and name != INDEX):
        return "the source's weights in another format, stale in the output"
    return "tells how the source was grafted; the output has its own" if name in OWN else ""


def _shares_tensors(file: SourceFile, name: str, tensors: frozenset[str]) -> bool:
    """Whether a safetensors file holds tensors called as the model's are; True too where its header cannot be read."""
    try:
        return not tensors.isdisjoint(read_header(file, shown=name).tensors)
    except InputRejected:
        return True


def _module_folders(directory: Path, on_hub: Mapping[str, HubFile]) -> Iterator[str]:
    """Yield the folders of sentence-transformers' modules other than the model itself, whose path is empty."""
    if not is_there(directory / _MODULES):
        return
    modules = decode_json(read_bounded(directory, _MODULES, MAX_DOCUMENT_BYTES), _MODULES)
    if not isinstance(modules, list):
        raise InputRejected(f"{_MODULES}: is not a list of modules")
    for place, module in enumerate(modules):
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or (path and not is_plain_relative(path.rstrip("/"))):
            raise InputRejected(f"{_MODULES}: {place}.path: '{printable(path)}' is not a folder below this one")
        folder = path.rstrip("/")
        if folder and ((directory / folder).is_dir() or any(name.startswith(f"{folder}/") for name in on_hub)):
            yield folder


def _files_below(directory: Path, folder: str) -> Iterator[str]:
    """Yield the files below ``folder``; a link to a folder counts as a file, and is refused when it is resolved."""
    if not is_there(directory / folder):
        return
    for root, folders, files in os.walk(directory / folder, onerror=raise_error):
        folders.sort()
        below = Path(root).relative_to(directory)
        yield from (str(below / name) for name in sorted(files))
        yield from (str(below / name) for name in folders if (Path(root) / name).is_symlink())
