"""Ids past the table: found in whatever form a tokenizer keeps its vocabulary, and never read where nothing can lie there."""

import json
import shutil

import pytest
from support import tokenizer_sources
from support.families import build

from graftkit.architecture import missing_rows as module
from graftkit.architecture.missing_rows import missing_rows, missing_rows_of
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import read_tokenizer


def with_tokenizer(source, place, documents):
    """The checkpoint with another tokenizer.json beside it."""
    shutil.copytree(source, place)
    (place / "tokenizer.json").write_text(json.dumps(documents["tokenizer.json"], ensure_ascii=False), encoding="utf-8")
    return Checkpoint.open(str(place))


@pytest.mark.parametrize("make", tokenizer_sources.SOURCES)
@pytest.mark.parametrize("spare", [-3, -1, 0, 1])
def test_every_form_of_vocabulary_is_read_far_enough(make, spare, tmp_path):
    documents = make()
    files = read_tokenizer(documents)
    source = build("llama", tmp_path / "base", rows=files.size + spare)
    found = missing_rows_of(with_tokenizer(source, tmp_path / "other", documents))
    assert found == missing_rows(files, files.size + spare)
    assert bool(found) == (spare < 0)


def test_what_cannot_lie_past_the_table_is_not_parsed(sources, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the tokenizer was parsed")

    monkeypatch.setattr(module, "read_tokenizer", refuse)
    assert missing_rows_of(Checkpoint.open(str(sources("llama")))) == ""


def test_ids_and_first_tokens_are_named(sources):
    files = read_tokenizer(Checkpoint.open(str(sources("llama"))).documents)
    tail = [files.token_of(index) for index in range(310, 320)]
    rest = "past the table's {} rows; extend_vocab makes the rows"
    assert missing_rows(files, 320) == missing_rows(files, 0) == ""
    assert missing_rows(files, 319) == f"the tokenizer's id 319 ({tail[9]!r}) lies {rest.format(319)}"
    four = ", ".join(map(repr, tail[:4]))
    assert missing_rows(files, 310) == f"the tokenizer's ids 310 to 319 ({four}, …) lie {rest.format(310)}"


def test_a_class_that_takes_no_ids_misses_no_row(tmp_path):
    from support.tiny import build as build_class

    build_class("ViTForImageClassification", tmp_path / "base")
    documents = tokenizer_sources.bpe()
    assert missing_rows_of(with_tokenizer(tmp_path / "base", tmp_path / "other", documents)) == ""
