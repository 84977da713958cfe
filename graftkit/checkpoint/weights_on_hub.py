"""The weights of a checkpoint that was opened from the hub by its headers alone: how much they are, and bringing them here."""

from __future__ import annotations

from pathlib import Path

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.files import resolve_member
from graftkit.checkpoint.hub.file import HubFile
from graftkit.checkpoint.hub.progress import Bytes
from graftkit.checkpoint.hub.snapshot import download
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.tensors import LazyTensor, Stored
from graftkit.errors import StorageFault, printable


def bytes_on_hub(checkpoint: Checkpoint) -> int:
    """Bytes of the checkpoint's weight files that lie on the hub alone."""
    return sum(file.size for file in checkpoint.on_hub.values() if not file.is_here)


def is_on_hub(tensor: LazyTensor) -> bool:
    """Whether a tensor of a source lies on the hub alone, so that reading it is a request."""
    return isinstance(tensor, Stored) and isinstance(tensor.path, HubFile) and not tensor.path.is_here


def download_weights(checkpoint: Checkpoint, progress: Bytes | None = None) -> None:
    """Bring the weight files that lie on the hub alone into the checkpoint's folder, those of the same commit.

    A download that was interrupted goes on where it stopped.

    Raises:
        InputRejected: access is refused.
        StorageFault: the hub cannot be reached, or sends something else than it described.
    """
    if not bytes_on_hub(checkpoint):
        return
    repo_id = next(iter(checkpoint.on_hub.values())).repo_id
    download(repo_id, checkpoint.revision, progress=progress)
    for name, file in checkpoint.on_hub.items():
        path = resolve_member(checkpoint.directory, name)
        described = {
            tensor: (stored.dtype, stored.shape, stored.offset)
            for tensor, stored in checkpoint.all_tensors.items()
            if isinstance(stored, Stored) and stored.path == file
        }
        if path.stat().st_size != file.size or (described and described != _described(path)):
            raise StorageFault(f"{repo_id}: {printable(name)}: is not what the hub described before; run again")


def _described(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    tensors = read_header(path).tensors
    return {name: (stored.dtype, stored.shape, stored.offset) for name, stored in tensors.items()}
