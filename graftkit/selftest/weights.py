"""Faults in weights: how each is planted at its place, the name of a tensor on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from graftkit.architecture.embeddings import OUTPUT
from graftkit.architecture.tying import FLAG
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import FLOATING, ITEM_BYTES, Computed, Stored
from graftkit.checkpoint.write import write_tensors
from graftkit.selftest import settings
from graftkit.selftest.copies import SINGLE, edit_json, edit_tensor, parts, stored, write_shards
from graftkit.selftest.subject import NotApplicable, Subject, first


def flip_an_ulp(directory: Path, _: Subject, name: str) -> None:
    """Flip the last bit of the middle value."""
    edit_tensor(directory, name, flip_middle)


def flip_middle(values: Any) -> None:
    """Flip the last bit of the middle one of these values."""
    words = values.flatten().view(_words(values))
    words[len(words) // 2] ^= 1


def swap_rows(directory: Path, subject: Subject, name: str) -> None:
    """Exchange the rows of two ids that the probe texts hold."""
    one, other = subject.probed_rows(name)

    def change(values: Any) -> None:
        values[[one, other]] = values[[other, one]]

    edit_tensor(directory, name, change)


def transpose(directory: Path, _: Subject, name: str) -> None:
    """Write the transpose of a square weight."""
    edit_tensor(directory, name, lambda values: values.copy_(values.T.clone()))


def exchange(directory: Path, _: Subject, place: str) -> None:
    """Exchange two weights of one shape."""
    one, other = place.split(" and ")
    held: list[Any] = []
    edit_tensor(directory, one, lambda values: held.append(values.clone()))

    def change(values: Any) -> None:
        held.append(values.clone())
        values.copy_(held[0])

    edit_tensor(directory, other, change)
    edit_tensor(directory, one, lambda values: values.copy_(held[1]))


def blank(directory: Path, _: Subject, name: str) -> None:
    """Write zeros over the first 4 KB, as a page that was never flushed leaves them."""
    edit_tensor(directory, name, lambda values: values.flatten()[: 4096 // values.element_size()].zero_())


def zero(directory: Path, _: Subject, name: str) -> None:
    """Write zeros."""
    edit_tensor(directory, name, lambda values: values.zero_())


def not_a_number(directory: Path, _: Subject, name: str) -> None:
    """Write one NaN; behind a fused softmax it may never reach the logits."""
    edit_tensor(directory, name, lambda values: values.view(-1)[:1].fill_(math.nan))


def tie_again(directory: Path, subject: Subject, name: str) -> None:
    """Write the input table over the output table."""
    edit_tensor(directory, name, lambda values: values.copy_(subject.values(subject.table())))


def untied_head(subject: Subject) -> str:
    """An output table that could be mistaken for the input table: of its shape and dtype, and not equal to it."""
    head, table = subject.head(), subject.table()
    tensors = subject.checkpoint.tensors
    if (tensors[head].shape, tensors[head].dtype) != (tensors[table].shape, tensors[table].dtype):
        raise NotApplicable("input and output tables differ in shape or dtype")
    return head


def tied_pair(subject: Subject) -> str:
    """The output table that is not stored, since it is the input table by the config's flag."""
    if not subject.vocabulary.tied:
        raise NotApplicable("input and output rows are not tied")
    settings.tie(subject)
    memory = subject.structure.memory
    names = (n for n in subject.structure.skeleton.weight_names(OUTPUT) if memory.first_on_disk(n) is None)
    return str(first(names, "both tables are stored"))


def store_apart(directory: Path, subject: Subject, _: str) -> None:
    """Store each weight that is tied to another one, equal to it, and tie them no more."""
    (whole,) = parts(directory, 1)
    memory = subject.structure.memory
    pairs = [(name, memory.first_on_disk(origin)) for name, origin in subject.structure.skeleton.tied.items()]
    copies = {name: whole[disk] for name, disk in pairs if disk is not None and memory.first_on_disk(name) is None}
    write_shards(directory, [{**whole, **copies}])
    edit_json(directory, "config.json", lambda config: config.update({FLAG: False}))


def drop(directory: Path, _: Subject, name: str) -> None:
    """Write the weights without this tensor."""
    (whole,) = parts(directory, 1)
    write_shards(directory, [{key: tensor for key, tensor in whole.items() if key != name}])


def rename(directory: Path, _: Subject, name: str) -> None:
    """Write this tensor under another name."""
    (whole,) = parts(directory, 1)
    write_shards(directory, [{f"old.{key}" if key == name else key: tensor for key, tensor in whole.items()}])


def other_dtype(directory: Path, _: Subject, name: str) -> None:
    """Call the bytes of this tensor by another floating dtype of the same width."""
    tensor = stored(directory, name)
    other = Stored(_twin_dtype(tensor.dtype), tensor.shape, tensor.path, tensor.offset, tensor.nbytes)
    (whole,) = parts(directory, 1)
    write_shards(directory, [{**whole, name: other}])


def two_byte_weight(subject: Subject) -> str:
    """A weight whose dtype has a twin of the same width."""
    names = (name for name in subject.weights() if _twin_dtype(subject.checkpoint.tensors[name].dtype))
    return str(first(names, "no weight has a dtype with a twin of the same width"))


def stale_beside_index(directory: Path, subject: Subject, name: str) -> None:
    """Leave an older ``model.safetensors``, in which ``name`` is another, beside shards with an index."""
    import torch

    older = (subject.values(name) * 0.5).contiguous().view(torch.uint8).numpy()
    write_shards(directory, parts(directory, 2))
    tensors = dict(Checkpoint.open(str(directory)).tensors)
    stale = Computed(tensors[name].dtype, tensors[name].shape, lambda: memoryview(older).cast("B"))
    write_tensors({**tensors, name: stale}, directory / SINGLE, {"format": "pt"})


def _twin_dtype(dtype: str) -> str:
    return next((d for d in FLOATING if d != dtype and ITEM_BYTES[d] == ITEM_BYTES.get(dtype)), "")


def _words(values: Any) -> Any:
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
