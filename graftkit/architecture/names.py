"""Names on disk and in memory, both ways, by transformers' own renamings and conversions.

Several tensors on disk may become one in memory (the experts of a mixture), and one may become several (a fused projection
that is split), so the way back from a name in memory gives all the names on disk that its values come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter


class MemoryName(NamedTuple):
    """The name in memory of a tensor on disk, and whether the loader converts its values (not only renames it).

    Where a conversion makes several tensors in memory, ``name`` is the first of them.
    """

    name: str
    converted: bool


@dataclass(frozen=True, slots=True)
class Conversion:
    """One conversion of the loader: the names on disk that it takes, each with the converter's pattern that it matches."""

    converter: WeightConverter
    patterns: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TensorNames(Mapping[str, MemoryName]):
    """Name on disk -> :class:`MemoryName`, with the way back.

    Attributes:
        memory: the names in memory, by name on disk.
        disk: name in memory -> the names on disk of all tensors that its values come from, in the loader's order.
        conversions: the conversion behind each :attr:`MemoryName.name` that has one.
    """

    memory: Mapping[str, MemoryName]
    disk: Mapping[str, tuple[str, ...]]
    conversions: Mapping[str, Conversion]

    def __getitem__(self, disk: str) -> MemoryName:
        return self.memory[disk]

    def __iter__(self) -> Iterator[str]:
        return iter(self.memory)

    def __len__(self) -> int:
        return len(self.memory)

    def on_disk(self, name: str) -> tuple[str, ...]:
        """Names on disk of all tensors that the values of ``name`` (in memory) come from; empty where none is stored."""
        return self.disk.get(name, ())

    def first_on_disk(self, name: str) -> str | None:
        """The first of :meth:`on_disk`, which is the one that is loaded where two are stored under one name in memory."""
        return next(iter(self.on_disk(name)), None)

    def stored_as(self, name: str) -> str | None:
        """Name on disk of the tensor that holds the values of ``name`` as they are; None where they are converted or not stored."""
        first = self.first_on_disk(name)
        return None if first is None or self.memory[first].converted else first


def tensor_names(model: PreTrainedModel, disk_names: Iterable[str]) -> TensorNames:
    """What transformers' loader would name each tensor on disk (``core_model_loading.convert_and_load_state_dict_in_model``)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    memory: dict[str, MemoryName] = {}
    patterns: dict[str, dict[str, str]] = {}
    conversions: dict[str, Conversion] = {}
    on_disk: dict[str, list[str]] = {}
    given = tuple(disk_names)
    for disk in sorted(given, key=dot_natural_key):  # some renamings begin at the first name that they fit
        name, pattern = rename_source_key(disk, renamings, converters, prefix, state)
        if name not in state and disk in state:
            name, pattern = rename_source_key(disk, [], [], base_model_prefix=prefix, meta_state_dict=state)
        memory[disk] = MemoryName(name, pattern is not None)
        made: tuple[str, ...] = (name,)
        if pattern is not None:
            patterns.setdefault(name, {})[disk] = pattern
            conversions.setdefault(name, Conversion(by_pattern[pattern], patterns[name]))
            made = _made_together(name, by_pattern[pattern].target_patterns)
        for one in made:
            on_disk.setdefault(one, []).append(disk)
    return TensorNames(
        {disk: memory[disk] for disk in given}, {name: tuple(disks) for name, disks in on_disk.items()}, conversions
    )


def _made_together(name: str, targets: Sequence[str]) -> tuple[str, ...]:
    """All names in memory that a conversion with these target patterns makes, ``name`` first."""
    before, found, after = name.partition(targets[0])
    return (name, *(f"{before}{target}{after}" for target in targets[1:] if found))
