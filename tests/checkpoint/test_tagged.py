"""Sentences with a tag for each word: columns and lists, and every complaint with its line."""

import json

import pytest

from graftkit.checkpoint.tagged import TaggedFile, TaggedSentence
from graftkit.errors import RecipeError

CONLL = """-DOCSTART- -X- O O

EU NNP I-NP B-ORG
rejects VBZ I-VP O

German JJ I-NP B-MISC
call NN I-NP O
. . O O


"""
IOB = "EU\tB-ORG\r\nrejects the\tO\r\n\r\nGerman\tB-MISC"
LABELS = ("O", "B-MISC", "B-ORG")


def tagged(path, labels=LABELS, words="tokens", tags="tags", count=3):
    return TaggedFile(path, words, tags, tuple(labels), count)


def written(tmp_path, text, name="a.conll"):
    (tmp_path / name).write_bytes(text.encode())
    return tmp_path / name


def test_columns_of_conll(tmp_path):
    file = tagged(written(tmp_path, CONLL))
    assert list(file.read()) == [
        TaggedSentence(3, ("EU", "rejects"), (2, 0)),
        TaggedSentence(6, ("German", "call", "."), (1, 0, 0)),
    ]
    assert file.names() == LABELS


def test_a_tab_parts_columns_where_there_is_one(tmp_path):
    found = list(tagged(written(tmp_path, IOB, "a.bio")).read())
    assert found == [
        TaggedSentence(1, ("EU", "rejects the"), (2, 0)),
        TaggedSentence(4, ("German",), (1,)),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_lists_in_rows(kind, tmp_path):
    rows = [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": [], "tags": []},
        {"tokens": ["x"], "tags": ["O"]},
    ]
    if kind == "jsonl":
        path = written(tmp_path, "\n".join(map(json.dumps, rows)), "a.jsonl")
    elif kind == "csv":
        cells = [
            '"{}","{}"'.format(*(json.dumps(row[key]).replace('"', '""') for key in ("tokens", "tags"))) for row in rows
        ]
        path = written(tmp_path, "\n".join(["tokens,tags", *cells]), "a.csv")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [(sentence.words, sentence.tags) for sentence in tagged(path).read()] == [
        (("EU", "rejects"), (2, 0)),
        (("x",), (0,)),
    ]


def test_tags_that_are_numbers(tmp_path):
    path = written(tmp_path, '{"w": ["a", "b"], "t": [0, 2]}\n', "a.jsonl")
    assert [sentence.tags for sentence in tagged(path, (), "w", "t").read()] == [(0, 2)]
    with pytest.raises(RecipeError, match=r"a.jsonl:1: the tag '0' is no name; give labels, or num_labels"):
        tagged(path, (), "w", "t").names()


def test_the_order_of_the_tags_is_that_of_the_alphabet_behind_o(tmp_path):
    path = written(tmp_path, "a I-B\nb B-A\nc O\nd A\n")
    assert tagged(path).names() == ("O", "A", "B-A", "I-B")
    assert tagged(written(tmp_path, "a I-B\nb B-A\n")).names() == ("B-A", "I-B")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.conll", "EU B-ORG\nrejects O X\n", "a.conll:2: has 3 columns, the lines before it 2"),
        ("a.conll", "EU B-ORG\n\nrejects\n", "a.conll:3: has one column; a word and its tag are wanted"),
        ("a.conll", "EU B-ORG\n\nrejects B-PER\n", "a.conll:3: the label 'B-PER' is none of the recipe's: O, B-MISC, B-ORG"),
        ("a.conll", "EU\tB-ORG\n \tO\n", "a.conll:2: a word is empty or no text"),
        ("a.conll", "EU\tB-ORG\nx\t\n", "a.conll:2: the label '' is none of the recipe's"),
        ("a.conll", "", "a.conll: label 'O' has 0 sentences; 3 are needed"),
        ("a.conll", "a O\n\n" * 3 + "a O\nb B-ORG\nc B-ORG\nd B-ORG\n", "label 'B-MISC' has 0 sentences; 3 are needed"),
        ("a.jsonl", '{"tokens": ["a"]}\n', "a.jsonl:1: has no field 'tags'; its fields are: tokens"),
        ("a.jsonl", '\n{"tokens": "a", "tags": []}\n', "a.jsonl:2: tokens is no list"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n', "a.jsonl:1: has 2 tokens for 1 tags"),
        ("a.jsonl", '{"tokens": ["a", 3], "tags": ["O", "O"]}\n', "a.jsonl:1: a word is empty or no text"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}\n', "a.jsonl:1: the label 'None' is none"),
        ("a.txt", "a O\n", "a.txt: is none of .jsonl, .csv, .parquet, .conll, .iob, .iob2, .bio"),
    ],
)  # fmt: skip
def test_every_complaint_names_its_line(name, text, message, tmp_path):
    with pytest.raises(RecipeError) as caught:
        tagged(written(tmp_path, text, name)).survey()
    assert message in str(caught.value)
