"""Texts from a file, labelled or not: JSON lines, CSV or Parquet, read as a stream, every complaint with its line."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.files import open_given
from graftkit.errors import RecipeError, printable

#: Fewest examples of a label: two to fit it by cross-validation, one to measure on.
FEWEST = 3

#: Rows of a Parquet file that are held at a time.
ROWS = 1024

#: Characters of a line, at most: some thousand pages.
LONGEST = 8 << 20

#: Digits of a label's number, at most.
LONGEST_NUMBER = 18

Row = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Example:
    """A text and the number of its label; ``line`` is its line in the file, or its row in a Parquet file."""

    line: int
    text: str
    label: int


@dataclass(frozen=True, slots=True)
class ExampleFile:
    """A file of examples. Without ``labels`` the label field holds numbers below ``count``."""

    path: Path
    text: str
    label: str
    labels: tuple[str, ...]
    count: int

    def read(self) -> Iterator[Example]:
        """Yield the examples in the order of the file.

        Raises:
            RecipeError: the file cannot be read, or an example has no text or no label of the recipe; with the line.
        """
        numbers = {name: index for index, name in enumerate(self.labels)}
        for line, row in read_rows(self.path, READERS):
            where = f"{printable(self.path)}:{line}"
            for field in (self.text, self.label):
                if row.get(field) is None:
                    known = ", ".join(printable(name) for name in row)
                    raise RecipeError(f"{where}: has no field '{printable(field)}'; its fields are: {known}")
            text = text_of(row[self.text], self.text, where)
            yield Example(line, text, label_number(row[self.label], numbers, self.count, where))

    def survey(self) -> list[int]:
        """The label's number of each example, in order: one pass that finds every complaint.

        Raises:
            RecipeError: see :meth:`read`; or a label has fewer than :data:`FEWEST` examples.
        """
        found = [example.label for example in self.read()]
        check_counts(self.path, self.labels, Counter(found), self.count, "examples")
        return found


def label_number(value: Any, numbers: Mapping[str, int], count: int, where: str) -> int:
    """The number of a label that an example names, or gives as a number below ``count`` where the labels have no names.

    Raises:
        RecipeError: it is none of them.
    """
    if numbers:
        if not isinstance(value, str) or value not in numbers:
            known = ", ".join(map(printable, numbers))
            raise RecipeError(f"{where}: the label '{printable(value)}' is none of the recipe's: {known}")
        return numbers[value]
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or len(text) > LONGEST_NUMBER or int(text) >= count:
        raise RecipeError(f"{where}: the label '{printable(value)}' is no number from 0 to {count - 1}")
    return int(text)


def check_counts(path: Path, labels: Sequence[str], counts: Mapping[int, int], number: int, of: str) -> None:
    """Refuse a label that too few examples have; ``of`` says what is counted.

    Raises:
        RecipeError: one of the ``number`` labels has fewer than :data:`FEWEST`.
    """
    for index in range(number):
        if counts.get(index, 0) < FEWEST:
            name = printable(labels[index]) if labels else index
            raise RecipeError(
                f"{printable(path)}: label {name!r} has {counts.get(index, 0)} {of}; {FEWEST} are needed:"
                " two to fit it and one to measure on"
            )


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file in its order: each line of a .txt that is not blank, else the field ``text`` of each row.

    Raises:
        RecipeError: the file cannot be read, or a row has no text; with the line.
    """
    for line, row in read_rows(path, {".txt": _lines, **READERS}):
        where = f"{printable(path)}:{line}"
        if row.get("text") is None:
            raise RecipeError(f"{where}: has no field 'text'; its fields are: {', '.join(map(printable, row))}")
        yield text_of(row["text"], "text", where)


def first_texts(path: Path, characters: int) -> tuple[str, ...]:
    """The first texts of a file, as many as make ``characters``.

    Raises:
        RecipeError: see :func:`read_texts`; or there is none.
    """
    found: list[str] = []
    room = characters
    for text in read_texts(path):
        found.append(text)
        room -= len(text)
        if room <= 0:
            break
    if not found:
        raise RecipeError(f"{printable(path)}: holds no text")
    return tuple(found)


def text_of(value: Any, field: str, where: str) -> str:
    """The text in a field.

    Raises:
        RecipeError: it is none, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{where}: {printable(field)} is empty or no text")
    return value


def read_rows(path: Path, readers: Mapping[str, Callable[[Path], Iterator[Row]]]) -> Iterator[Row]:
    """Yield each row of a file with its line, by the reader for the ending of its name.

    Raises:
        RecipeError: there is no reader for it, or it cannot be read.
    """
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RecipeError(f"{printable(path)}: is none of {', '.join(readers)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise RecipeError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{printable(path)}: is not UTF-8 text") from error


def bounded_lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield each line of a regular file with its number.

    Raises:
        RecipeError: it is no regular file, or a line is longer than :data:`LONGEST` characters.
    """
    with open_given(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline=newline) as file:
        number = 0
        while text := file.readline(LONGEST + 1):
            number += 1
            if len(text) > LONGEST:
                raise RecipeError(
                    f"{printable(path)}:{number}: is longer than {LONGEST:,} characters, the most of a line"
                )
            yield number, text


def _lines(path: Path) -> Iterator[Row]:
    yield from ((line, {"text": text.rstrip("\r\n")}) for line, text in bounded_lines(path) if text.strip())


def _json_lines(path: Path) -> Iterator[Row]:
    for line, text in bounded_lines(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{printable(path)}:{line}: is not JSON: {printable(error)}") from error
        if not isinstance(row, dict):
            raise RecipeError(f"{printable(path)}:{line}: is no JSON object")
        yield line, row


def _comma_separated(path: Path) -> Iterator[Row]:
    reader = csv.reader((text for _, text in bounded_lines(path, newline="")), strict=True)
    names: Sequence[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RecipeError(f"{printable(path)}:{line}: is not CSV: {printable(error)}") from error
        if names is None:
            names = values
        elif len(values) == len(names):
            yield line, dict(zip(names, values, strict=True))
        elif values:
            raise RecipeError(f"{printable(path)}:{line}: has {len(values)} values for {len(names)} columns")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise RecipeError(
            f"{printable(path)}: Parquet is read with pyarrow: pip install 'graftkit[parquet]', or give .jsonl or .csv"
        ) from error
    try:
        with open_given(path) as raw, parquet.ParquetFile(raw) as file:
            line = 0
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except ArrowInvalid as error:
        raise RecipeError(f"{printable(path)}: is not Parquet: {printable(str(error).splitlines()[0])}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".csv": _comma_separated,
    ".parquet": _parquet,
}
