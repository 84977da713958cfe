"""Sentences whose words have tags: columns as of CoNLL (one word a line, a blank line between sentences), or lists in a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.example_sets import list_of
from graftkit.checkpoint.examples import READERS, Row, bounded_lines, check_counts, label_number, read_rows, text_of
from graftkit.errors import RecipeError, printable

#: Endings of files with columns; the first column is the word, the last one its tag.
COLUMNS = (".conll", ".iob", ".iob2", ".bio")

#: Begins a line that separates documents in CoNLL-2003.
DOCUMENT = "-DOCSTART-"

#: The tag of a word that is nothing; the first of tags that are taken from a file.
OUTSIDE = "O"

#: A word with its line and its tag as it is written.
Word = tuple[int, str, Any]


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """Words and the numbers of their tags; ``line`` is that of the first word, or the row in a Parquet file."""

    line: int
    words: tuple[str, ...]
    tags: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TaggedFile:
    """A file of sentences; ``words`` and ``tags`` are the fields of rows. Without ``labels`` tags are numbers below ``count``."""

    path: Path
    words: str
    tags: str
    labels: tuple[str, ...] = ()
    count: int = 0

    @property
    def has_columns(self) -> bool:
        """Whether the file has columns, and no fields."""
        return self.path.suffix.lower() in COLUMNS

    def read(self) -> Iterator[TaggedSentence]:
        """Yield the sentences in the order of the file.

        Raises:
            RecipeError: the file cannot be read, or a word has no tag of the recipe; with the line.
        """
        numbers = {name: index for index, name in enumerate(self.labels)}
        for sentence in self._sentences():
            lines, words, tags = zip(*sentence, strict=True)
            found = (
                label_number(tag, numbers, self.count, self._place(line)) for line, tag in zip(lines, tags, strict=True)
            )
            yield TaggedSentence(lines[0], words, tuple(found))

    def survey(self) -> list[tuple[int, ...]]:
        """The tags of each sentence, in order: one pass that finds every complaint.

        Raises:
            RecipeError: see :meth:`read`; or too few sentences have a tag.
        """
        found = [sentence.tags for sentence in self.read()]
        counts = Counter(tag for tags in found for tag in set(tags))
        check_counts(self.path, self.labels, counts, self.count, "sentences")
        return found

    def names(self) -> tuple[str, ...]:
        """Every tag of the file: :data:`OUTSIDE` first, then in alphabetical order, whatever the order of the sentences.

        Raises:
            RecipeError: the file cannot be read, or a tag is no name; with the line.
        """
        found = set()
        for sentence in self._sentences():
            for line, _, tag in sentence:
                if not isinstance(tag, str) or not tag.strip():
                    raise RecipeError(
                        f"{self._place(line)}: the tag '{printable(tag)}' is no name; give labels, or num_labels where tags are"
                        " numbers"
                    )
                found.add(tag)
        return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, tag)))

    def _sentences(self) -> Iterator[list[Word]]:
        """Yield the words of each sentence that has any."""
        for line, row in read_rows(self.path, {**READERS, **dict.fromkeys(COLUMNS, _columns)}):
            sentence = row["words"] if self.has_columns else self._from_row(row, line)
            for at, word, _ in sentence:
                text_of(word, "a word", self._place(at))
            if sentence:
                yield sentence

    def _from_row(self, row: Any, line: int) -> list[Word]:
        lists = []
        for name in (self.words, self.tags):
            if row.get(name) is None:
                fields = ", ".join(printable(field) for field in row)
                raise RecipeError(f"{self._place(line)}: has no field '{printable(name)}'; its fields are: {fields}")
            found = list_of(row[name])
            if found is None:
                raise RecipeError(f"{self._place(line)}: {printable(name)} is no list")
            lists.append(found)
        words, tags = lists
        if len(words) != len(tags):
            raise RecipeError(
                f"{self._place(line)}: has {len(words)} {printable(self.words)} for {len(tags)} {printable(self.tags)}"
            )
        return [(line, word, tag) for word, tag in zip(words, tags, strict=True)]

    def _place(self, line: int) -> str:
        return f"{printable(self.path)}:{line}"


def _columns(path: Path) -> Iterator[Row]:
    """Yield the words of each sentence of a file with columns, as one field."""
    sentence: list[Word] = []
    width = 0
    for line, text in bounded_lines(path):
        cells = [cell.strip() for cell in text.split("\t")] if "\t" in text else text.split()
        if not any(cells):
            yield line, {"words": sentence}
            sentence = []
            continue
        if cells[0] == DOCUMENT:
            continue
        width = width or len(cells)
        if len(cells) == 1:
            raise RecipeError(f"{printable(path)}:{line}: has one column; a word and its tag are wanted")
        if len(cells) != width:
            raise RecipeError(f"{printable(path)}:{line}: has {len(cells)} columns, the lines before it {width}")
        sentence.append((line, cells[0], cells[-1]))
    yield 0, {"words": sentence}
