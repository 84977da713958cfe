"""Words from a file, new rows and a donor's tokenizer over each kind of tokenizer, by the command; then any text by what was written.

The other operations on tokens go over the same kinds in files of their own.
"""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.donors import write_donor
from support.recipes import applied
from support.renamed import WITH_WORDS, checkpoint
from support.tokenizer_sources import TEXT, bpe, llama, unigram, wordlevel, wordpiece
from transformers import AutoTokenizer

from graftkit.architecture.index_map import IndexMap

#: Each kind as the base, with a donor that has a token for each role which the base names.
DONORS = {
    bpe: "byte_level", llama: "wordpiece", wordpiece: "unigram", unigram: "sentencepiece", wordlevel: "wordpiece",
}  # fmt: skip
KINDS = pytest.mark.parametrize("make", DONORS, ids=lambda make: make.__name__)

WORDS = ("quokka", "zebrafish", "Łódź", "雪")
INPUT = "model.embed_tokens.weight"

ANY_TEXT = st.lists(
    st.text(max_size=10) | st.sampled_from([word for text in TEXT for word in text.split()]), max_size=6
).map(" ".join)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The base, the output and its report for an operation over a kind, each written once."""

    @functools.cache
    def base(make):
        return checkpoint(make, tmp_path_factory.mktemp(make.__name__) / "base")

    @functools.cache
    def write(operation, make):
        place = tmp_path_factory.mktemp(f"{operation}_{make.__name__}")
        return base(make), *applied(base(make), place, {"op": operation, **fields_of(operation, make, place)})

    return write


def fields_of(operation, make, place):
    if operation == "extend_vocab":
        (place / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
        return {"tokens": {"file": str(place / "words.txt")}}
    if operation == "reinit_rows":
        return {"tokens": [next(iter(WITH_WORDS[make]))], "init": "mean"}
    return {"donor": str(write_donor(DONORS[make], place / "donor", tokens=600, topics=20)), "init": "fvt"}


@functools.cache
def reads(folder):
    """What a text gives by the files of a folder, as transformers reads them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text)["input_ids"]


def passed(report):
    """Nothing that was checked failed."""
    checks = [*report["checks"].values(), *report["tokenization"]]
    return all(not found.get("failures") for found in checks)


@KINDS
def test_words_of_a_file_are_single_tokens_behind_the_old_ones(make, written):
    base, output, report = written("extend_vocab", make)
    old, new = map(AutoTokenizer.from_pretrained, (base, output))
    assert passed(report)
    assert report["new_tokens"] == {word: len(old) + place for place, word in enumerate(WORDS)}
    for word, index in report["new_tokens"].items():
        assert index in new(f"the {word} sat")["input_ids"]
    before, after = (load_file(folder / "model.safetensors")[INPUT] for folder in (base, output))
    assert after[: len(old)].equal(before[: len(old)])


@KINDS
def test_one_row_of_each_table_is_new(make, written):
    base, output, report = written("reinit_rows", make)
    assert passed(report)
    chosen = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids(next(iter(WITH_WORDS[make])))
    before, after = (load_file(folder / "model.safetensors")[INPUT] for folder in (base, output))
    assert (before != after).any(1).nonzero().flatten().tolist() == [chosen]


@KINDS
def test_tokens_that_a_donor_shares_keep_their_rows(make, written):
    base, output, report = written("transplant_tokenizer", make)
    assert passed(report)
    old, new = map(AutoTokenizer.from_pretrained, (base, output))
    before, after = (load_file(folder / "model.safetensors")[INPUT] for folder in (base, output))
    ids = report["correspondence"]["ids"]
    found = IndexMap(ids["source"], ids["result"], tuple(map(tuple, ids["runs"])))
    assert len(after) == len(new) == found.result
    assert after[[*found.places]].equal(before[[*found.kept]])
    special = {*old.all_special_ids}
    shared = [pair for pair in zip(found.kept, found.places, strict=True) if pair[0] not in special]
    assert len(shared) > (15 if make is wordlevel else 30)  # it has 53 words, and 19 of them are tokens of the donor
    for mine, theirs in shared:
        assert continuing(old, mine) == continuing(new, theirs)


def continuing(tokenizer, index):
    """What a token adds to a text that stands before it."""
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    return tokenizer.decode([letter, index])[1:].strip()


@KINDS
@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=ANY_TEXT)
def test_any_text_without_new_words_reads_as_before(written, make, text):
    base, output, report = written("extend_vocab", make)
    now = reads(output)(text)
    if {*now}.isdisjoint(report["new_tokens"].values()):
        assert now == reads(base)(text)
    else:
        assert any(word.lower() in text.lower() for word in WORDS)


@KINDS
@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=ANY_TEXT)
def test_any_text_reads_as_before_where_rows_alone_are_new(written, make, text):
    base, output, _ = written("reinit_rows", make)
    assert reads(output)(text) == reads(base)(text)


@KINDS
@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=ANY_TEXT)
def test_any_text_reads_as_by_the_donor(written, make, text):
    _, output, _ = written("transplant_tokenizer", make)
    assert reads(output)(text) == reads(output.parent / "donor")(text)
