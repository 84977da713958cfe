"""Untying by copy: a table that is trained on one side of a tied pair needs a tensor of its own on each side."""

from __future__ import annotations

from collections.abc import Collection

from graftkit.architecture.skeleton import Skeleton
from graftkit.architecture.tying import untied as untied_config
from graftkit.checkpoint.checkpoint import Checkpoint


def untied(checkpoint: Checkpoint, skeleton: Skeleton, trained: Collection[str]) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint with every tie undone of which ``trained`` (names in memory) touches a side, and a note of it.

    The identical checkpoint where there is nothing to undo. The copy is the same bytes under a second name.

    Raises:
        InputRejected: the class ties them whatever the config says.
    """
    touched = {t: o for t, o in skeleton.tied.items() if t in trained or o in trained}
    if not touched:
        return checkpoint, ()
    config, left = untied_config(checkpoint.config, frozenset({*touched, *touched.values()}))
    disk = {memory: name for name, (memory, _) in skeleton.memory_names(list(checkpoint.tensors)).items()}
    copies = {}
    for target, origin in skeleton.tied.items():
        if target in left.tied or target in disk:
            continue
        copies[target] = checkpoint.tensors[disk[origin]]
    note = f"untied by copy, since one side is trained: {', '.join(sorted(touched))}"
    return checkpoint.with_documents({"config.json": config}).with_tensors(copies), (note,)
