"""A folder of torch.distributed.checkpoint, written by torch itself from safetensors files that are mapped and not read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint


def write_folder(plain: Checkpoint, names: Mapping[str, str], folder: Path) -> None:
    """Write the tensors of ``plain`` into ``folder``: ``names`` gives by its name there what each is called in ``plain``.

    By one thread: of several, whichever ends first would stand first in ``.metadata``, and the same tensors would give other bytes.

    Raises:
        OSError: writing failed; the caller discards the folder.
    """
    from safetensors import safe_open
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import StorageMeta
    from torch.distributed.checkpoint.state_dict_saver import save

    class Writer(FileSystemWriter):
        def storage_meta(self) -> StorageMeta:
            """Nothing of where and when it was written, so that the same tensors give the same bytes."""
            return StorageMeta()

    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no processes take part, which is meant
        homes = {name: file for file, held in plain.shards.items() for name in held}
        opened: dict[str, Any] = {
            file: stack.enter_context(safe_open(plain.path_of(file), "pt")) for file in plain.shards
        }
        state = {name: opened[homes[disk]].get_tensor(disk) for name, disk in names.items()}
        try:
            save(state, storage_writer=Writer(folder), no_dist=True)
        except CheckpointException as error:  # no Exception, so that nobody would see it
            raise next(cause for cause, _ in error.failures.values()) from error
