"""A DCP folder beside the plain checkpoint that it was made of: every tensor as torch.distributed.checkpoint loads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.architecture.accounting import account
from graftkit.architecture.state_names import state_names
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.distributed.description import read_description
from graftkit.checkpoint.distributed.sharded import Sharded
from graftkit.checkpoint.distributed.write import write_folder
from graftkit.checkpoint.reading import read_tensor
from graftkit.checkpoint.weights import INDEX
from graftkit.errors import InputRejected, few, plural, printable
from graftkit.verification.checks import Report, Row
from graftkit.verification.weights.unpickled import gathered

if TYPE_CHECKING:
    from torch import Tensor

#: What is said of every promise of such an output.
IN_PLAIN_FORM = "verified as a plain checkpoint, of which the DCP folder holds every tensor byte for byte"


@dataclass(frozen=True, slots=True)
class DcpReport(Report):
    """How many ``tensors`` and ``nbytes`` were read back."""

    tensors: int
    nbytes: int
    failures: tuple[str, ...]
    name: str = "dcp"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        figure = (
            f"{plural(self.tensors, 'tensor')}, {self.nbytes / 1e6:.1f} MB, as torch.distributed.checkpoint loads them"
        )
        yield Row("DCP folder", "failed" if self.failures else "bitwise", figure)


def made_of_plain(folder: Path) -> DcpReport:
    """Write a DCP folder in the place of the verified weight files of ``folder``, which go once it is found to hold the same bytes."""
    plain = Checkpoint.open(str(folder))
    names = state_names(account(plain))
    write_folder(plain, names, folder)
    found = compare_with_folder(plain, names, folder)
    for file in () if found.failures else (*plain.shards, *([INDEX] if plain.index is not None else [])):
        (folder / file).unlink()
    return found


def compare_with_folder(plain: Checkpoint, names: Mapping[str, str], folder: Path) -> DcpReport:
    """Read ``folder`` back by torch and compare it with ``plain``; ``names`` gives by its name there what each is in ``plain``."""
    try:
        found = read_description(folder).tensors
    except InputRejected as error:
        return DcpReport(0, 0, (f"dcp: {error}",))
    failures = []
    if other := found.keys() ^ names.keys():
        failures.append(f"dcp: {few(other)}: in one of the folder and the checkpoint alone")
    nbytes = 0
    for name in names.keys() & found.keys():
        wanted = plain.tensors[names[name]]
        nbytes += wanted.nbytes
        if (wanted.dtype, wanted.shape) != (found[name].dtype, found[name].shape):
            failures.append(f"dcp: {printable(name)!r} is {found[name].dtype} {list(found[name].shape)}")
            continue
        try:
            same = _bits(gathered(Sharded(folder, name, found[name]))).equal(_bits(read_tensor(wanted)))
        except InputRejected as error:
            failures.append(f"dcp: {error}")
            continue
        if not same:
            failures.append(f"dcp: {printable(name)!r} does not hold the bytes of the checkpoint that was verified")
    return DcpReport(len(names), nbytes, tuple(failures))


def _bits(values: Tensor) -> Tensor:
    import torch

    return values.contiguous().view(-1).view(torch.uint8)
