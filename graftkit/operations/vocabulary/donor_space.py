"""The donor's own tables: each of its tokens as a combination of tokens that the base has too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from graftkit.architecture.vocabulary import Vocabulary, VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_ids, row_chunks
from graftkit.errors import RecipeError, plural
from graftkit.initializers.matching_pursuit import Combinations, matching_pursuit
from graftkit.initializers.statistics import TableStatistics, table_statistics

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Combined:
    """Tokens of the donor, each with its place in ``combinations`` of the base's ids ``anchors``."""

    places: Mapping[int, int]
    anchors: Sequence[int]
    combinations: Combinations

    def rows(self, ids: Sequence[int], read: Callable[[list[int]], Tensor]) -> Tensor:
        """The rows of these tokens of the donor; ``read`` gives rows of the base by id. *Shape:* float64 ``(len(ids), d)``."""
        import torch

        found = self.combinations.some([self.places[index] for index in ids])
        used, atoms = torch.unique(found.atoms, return_inverse=True)
        return replace(found, atoms=atoms).of(read([self.anchors[atom] for atom in used.tolist()]))


@dataclass
class DonorSpace:
    """What :func:`matching_pursuit` makes of the donor's tables.

    ``shared`` gives for each plain token that both have the base's id and the donor's, ``wanted`` are the donor's ids to be combined,
    ``k`` how many others each takes.
    """

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    shared: Mapping[int, int]
    wanted: Sequence[int]
    k: int
    _found: dict[str, Combined] = field(default_factory=dict)

    def combine(self, role: str, base: TableStatistics) -> Combined:
        """Combinations in the donor's input or output table, found once; ``base`` are the statistics of the base's table.

        A row that was never trained, on either side, is no anchor, and one of the donor's is not combined.

        Raises:
            RecipeError: fewer than ``k`` shared tokens were trained on both sides.
        """
        item = self._table(role)
        if item.name not in self._found:
            self._found[item.name] = self._combine(item, base)
        return self._found[item.name]

    def _table(self, role: str) -> VocabularyTensor:
        outputs = self.vocabulary.of_role("output") if role.startswith("output") else ()
        return (outputs or self.vocabulary.of_role("input"))[0]

    def _combine(self, item: VocabularyTensor, base: TableStatistics) -> Combined:
        stored = self.checkpoint.tensors[item.name]
        rows = self.vocabulary.rows
        donor = table_statistics(lambda: row_chunks(stored, item.axis, rows), rows)
        pairs = [
            (mine, theirs)
            for mine, theirs in self.shared.items()
            if theirs < rows and mine < base.size and not donor.kinds[theirs] and not base.kinds[mine]
        ]
        if len(pairs) < self.k:
            raise RecipeError(
                f"k is {self.k}, but only {plural(len(pairs), 'shared token')} were trained on both sides",
                field="init.k",
            )
        wanted = [index for index in self.wanted if index < rows and not donor.kinds[index]]
        vectors, atoms = (read_ids(stored, ids, item.axis) for ids in (wanted, [theirs for _, theirs in pairs]))
        found = matching_pursuit(vectors, atoms, self.k)
        return Combined({index: place for place, index in enumerate(wanted)}, [mine for mine, _ in pairs], found)

    def figures(self) -> dict[str, dict[str, float]]:
        """By table of the donor: tokens combined, anchors, and what of their rows no combination gives, as a share of the length."""
        return {
            name: {
                "tokens": len(one.places), "anchors": len(one.anchors), "k": self.k,
                "residual_mean": float(one.combinations.residuals.mean()) if one.places else 0.0,
                "residual_max": float(one.combinations.residuals.max()) if one.places else 0.0,
            }
            for name, one in self._found.items()
        }  # fmt: skip
