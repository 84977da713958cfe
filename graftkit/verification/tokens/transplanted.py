"""A checkpoint with another's tokenizer, beside both: rows of shared tokens, new rows, files, roles and ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.vocabulary import VocabularyTensor
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_ids, row_chunks
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.checkpoint.tokenizer.folder import DOCUMENTS, TokenizerFolder, is_tokenizer_file
from graftkit.checkpoint.tokenizer.id_places import CONFIG, GENERATION, IdPlace, id_places
from graftkit.checkpoint.tokenizer.shared import SharedTokens, shared_tokens
from graftkit.checkpoint.tokenizer.spelling import Spelling
from graftkit.errors import plural, printable
from graftkit.running.place import folder_of, open_place
from graftkit.verification.checks import Report, Row

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.verification.subject import Subject


@dataclass(frozen=True, slots=True)
class TransplantReport(Report):
    """How many rows of all ``tables`` together were compared bit by bit, and how many new ones were found finite.

    ``files`` are those compared with the donor's byte for byte, ``ids`` those that configs name.
    """

    tables: int
    shared: int
    new: int
    files: int
    ids: int
    failures: tuple[str, ...]
    name: str = "transplanted"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        verdict = "failed" if self.failures else "bitwise"
        figure = f"{plural(self.shared, 'row')} of {plural(self.tables, 'table')} equal to the base's; {self.new:,} new ones finite"
        yield Row("rows of shared tokens", verdict, figure)
        what = f"{plural(self.files, 'file')} equal to the donor's; {plural(self.ids, 'id')} in configs at their tokens"
        yield Row("tokenizer of the donor", "failed" if self.failures else "equal", what)


@dataclass(frozen=True, slots=True)
class TransplantCheck:
    """``before`` and ``after`` are what the operation was given and what it planned; ``tables`` are indexed by the vocabulary."""

    before: Checkpoint
    after: Checkpoint
    donor: TokenizerFolder
    tables: tuple[VocabularyTensor, ...]
    name: str = "transplanted"

    def applies(self, subject: Subject) -> bool:
        """Wherever something was written."""
        return subject.base_changed

    def run(self, subject: Subject) -> TransplantReport:
        """Look at what is written; a table or tokenizer that a later operation changed is looked at as it was planned."""
        written = open_place(subject.result)
        tables = {
            item: (self.after if item.name in subject.changed_later else written).tensors[item.name]
            for item in self.tables
        }
        tokens, later = subject.tokens, subject.later.ids
        kept = later is None and not (tokens and (tokens.ids or tokens.renamed or tokens.chat_template_changed))
        folder = folder_of(subject.result) if kept and not written.in_memory else None
        return self.compare(tables, written if kept else self.after, folder)

    def compare(
        self, tables: Mapping[VocabularyTensor, LazyTensor], found: Checkpoint, folder: Path | None
    ) -> TransplantReport:
        """Compare the ``tables`` and documents that were ``found``, and the tokenizer files in ``folder``, where one is given."""
        rows = min(self.before.tensors[item.name].shape[item.axis] for item in tables)
        base = Spelling(read_tokenizer(self.before.documents, carried=self.before.carried).within(rows))
        shared = shared_tokens(base, Spelling(self.donor.files))
        size = min(tensor.shape[item.axis] for item, tensor in tables.items())
        places = list(id_places(_configs(found), size))
        failures = (
            *self._wrong_tables(tables, shared.origins),
            *self._old_files(found),
            *(_other_files(self.donor, folder) if folder else ()),
            *self._wrong_ids(places, shared, rows),
        )
        return TransplantReport(
            tables=len(tables),
            shared=len(tables) * len(shared.origins),
            new=len(tables) * (size - len(shared.origins)),
            files=len(self.donor.paths) if folder else 0,
            ids=sum(len(place.ids) for place in places),
            failures=failures,
        )

    def _wrong_tables(self, tables: Mapping[VocabularyTensor, LazyTensor], origins: Mapping[int, int]) -> Iterator[str]:
        donor = self.donor.files
        for item, tensor in tables.items():
            rows, shown = tensor.shape[item.axis], printable(item.name)
            if rows < donor.size:
                yield f"transplanted: tensor {shown!r} has {rows} rows for the {donor.size} ids of the tokenizer"
            else:
                yield from _wrong_rows(item, self.before.tensors[item.name], tensor, origins, donor.tokens)

    def _old_files(self, found: Checkpoint) -> Iterator[str]:
        """Yield a sentence for each tokenizer file of the base that is still there, and each copy of its chat template."""
        for name in (*found.documents, *found.carried):
            if (name in DOCUMENTS or is_tokenizer_file(name)) and name not in self.donor.paths:
                yield f"transplanted: {printable(name)} is none of the donor's files: it is the old tokenizer's"
        for name in ("chat_template.json", "processor_config.json"):
            if "chat_template" in (found.documents.get(name) or {}):
                yield f"transplanted: {name} holds the old tokenizer's chat template"

    def _wrong_ids(self, places: Sequence[IdPlace], shared: SharedTokens, rows: int) -> Iterator[str]:
        """Yield a sentence for each id of a config that no token of the donor has, or that is not where its token went.

        ``rows`` are those of the base's tables.
        """
        donor = self.donor.files
        old = {str(place): place.ids for place in id_places(_configs(self.before), rows)}
        for place in places:
            role = re.sub(r"_(id|index)$", "", str(place.path[-1]))
            given = donor.ids.get(donor.special.get(role, ""))
            before = old.get(str(place), ())
            for index in place.ids:
                if index not in donor.tokens:
                    yield f"transplanted: {place} names {index}, which no token of the donor has"
                elif given is None and shared.origins.get(index) not in (*before, *(() if before else (None,))):
                    yield f"transplanted: {place} names {index}, which is not the token that the base had there"
            if given is not None and given not in place.ids:
                yield f"transplanted: {place} names {', '.join(map(str, place.ids))}, the donor's {role} is id {given}"


def _configs(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: checkpoint.documents[name] for name in (CONFIG, GENERATION) if name in checkpoint.documents}


def _wrong_rows(
    item: VocabularyTensor, base: LazyTensor, table: LazyTensor, origins: Mapping[int, int], tokens: Mapping[int, str]
) -> Iterator[str]:
    """Yield a sentence for rows of shared tokens that are not the base's bit by bit, and for new rows that are not finite."""
    other, wild = [], []
    for start, rows in row_chunks(table, item.axis, table.shape[item.axis]):
        ids = [index for index in range(start, start + len(rows)) if index in origins]
        if ids:
            wanted = _words(read_ids(base, [origins[index] for index in ids], item.axis))
            here = _words(rows[[index - start for index in ids]])
            other += [ids[place] for place in (wanted != here).any(1).nonzero().flatten().tolist()]
        broken = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
        wild += [start + place for place in broken if start + place not in origins]
    shown = printable(item.name)
    if other:
        first = f"id {other[0]} ({printable(tokens[other[0]])!r})"
        count = plural(len(other), "row")
        yield f"transplanted: tensor {shown!r}: {count} of shared tokens differ from the base's, first that of {first}"
    if wild:
        yield f"transplanted: tensor {shown!r}: {plural(len(wild), 'new row')} not finite, first that of id {wild[0]}"


def _words(rows: Tensor) -> Tensor:
    """The same bits as integers, so that not values are compared."""
    import torch

    return rows.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()])


def _other_files(donor: TokenizerFolder, folder: Path) -> Iterator[str]:
    for name in donor.paths:
        written = folder / name
        if not written.is_file():
            yield f"transplanted: {printable(name)} of the donor is missing"
        elif written.read_bytes() != (donor.directory / name).read_bytes():
            yield f"transplanted: {printable(name)} is not the donor's file"
