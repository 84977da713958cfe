"""Where the tensors of another checkpoint go: the names on disk that a base has for the same weights, by either class."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from graftkit.architecture.accounting import Structure
from graftkit.architecture.correspondence import WHOLE
from graftkit.architecture.part import find_part
from graftkit.errors import InputRejected


@dataclass(frozen=True, slots=True)
class Places:
    """Where the donor's tensors go.

    Attributes:
        names: name on disk in the donor -> name on disk in the base. None stands for a weight that the base has in another form: its
            loader converts what it has on disk, and the donor's does not, or from another number of tensors.
        modules: the largest module that both have, by its names in the donor's and the base's memory.
    """

    names: Mapping[str, str | None]
    modules: tuple[str, str] = WHOLE

    def holds_module(self, donor: Structure, taken: Collection[str]) -> bool:
        """Whether ``taken``, names on disk in the donor, are all tensors of the module that both have, under another name."""
        theirs, ours = self.modules
        inside = [d for d, m in donor.memory.items() if not theirs or m.name.startswith(f"{theirs}.")]
        return theirs != ours and {*inside} <= {*taken}


def places_of(donor: Structure, base: Structure) -> Places:
    """The places of the donor's tensors where one of the two classes is a part of the other.

    Of one class the names are the same but for older spellings.
    """
    names, modules = _in_memory(donor, base)
    found: dict[str, str | None] = {}
    for theirs, disks in donor.memory.disk.items():
        ours = names.get(theirs)
        there = () if ours is None else base.memory.on_disk(ours)
        if not there:
            continue
        converted = [structure.memory[held[0]].converted for structure, held in ((donor, disks), (base, there))]
        same = len(there) == len(disks) and converted[0] == converted[1]
        found |= dict(zip(disks, there, strict=True)) if same else dict.fromkeys(disks)
    return Places(found, modules)


def _in_memory(donor: Structure, base: Structure) -> tuple[Mapping[str, str], tuple[str, str]]:
    """Name in the donor's memory -> name in the base's, and the module that both have."""
    one, other = donor.skeleton, base.skeleton
    if one.architecture == other.architecture:
        return {name: name for name in one.shapes}, WHOLE
    try:
        if len(one.shapes) <= len(other.shapes):
            part = find_part(other, one)
            return part.names, (part.modules[1], part.modules[0])
        part = find_part(one, other)
    except InputRejected:
        return {}, WHOLE
    return {theirs: ours for ours, theirs in part.names.items()}, part.modules
