"""Labelled examples: three formats, and every complaint with its line."""

import json

import pytest

from graftkit.checkpoint.examples import Example, ExampleFile
from graftkit.errors import RecipeError

ROWS = [{"text": f"text {i}", "label": ["good", "bad"][i % 2]} for i in range(8)]


def jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def examples(path, labels=("good", "bad"), **fields):
    names = {"text": "text", "label": "label", **fields}
    return ExampleFile(path, names["text"], names["label"], tuple(labels), len(labels) or 2)


def test_json_lines(tmp_path):
    file = examples(jsonl(tmp_path / "a.jsonl"))
    assert list(file.read())[:2] == [Example(1, "text 0", 0), Example(2, "text 1", 1)]
    assert file.survey() == [0, 1] * 4


def test_comma_separated_with_a_line_break_inside(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('body,kind\n"one\ntwo, three",good\nfour,bad\n')
    found = list(examples(path, text="body", label="kind").read())
    assert found == [Example(2, "one\ntwo, three", 0), Example(4, "four", 1)]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(examples(tmp_path / "a.parquet").read())[1] == Example(2, "text 1", 1)
    (tmp_path / "b.parquet").write_text("no")
    with pytest.raises(RecipeError, match=r"b.parquet: is not Parquet"):
        list(examples(tmp_path / "b.parquet").read())


def test_labels_without_names_are_numbers(tmp_path):
    rows = [{"text": "a", "label": i % 2 if i < 4 else str(i % 2)} for i in range(8)]
    assert examples(jsonl(tmp_path / "a.jsonl", rows), labels=()).survey() == [0, 1] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a", "label": "good"}\n{"text": "a"}\n', "a.jsonl:2: has no field 'label'; its fields are: text"),
        ('{"text": "a", "label": "ugly"}\n', "a.jsonl:1: the label 'ugly' is none of the recipe's: good, bad"),
        ('\n{"text": " ", "label": "good"}\n', "a.jsonl:2: text is empty or no text"),
        ('{"text": 3, "label": "good"}\n', "a.jsonl:1: text is empty or no text"),
        ('{"text": \n', "a.jsonl:1: is not JSON"),
        ("[1]\n", "a.jsonl:1: is no JSON object"),
        ('{"text": "a", "label": "good"}\n' * 3, "label 'bad' has 0 examples; 3 are needed"),
        ('{"text": "a", "label": "\\u001b[31m"}\n', r"the label '\x1b[31m' is none"),
    ],
)
def test_every_complaint_names_its_line(text, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(RecipeError) as caught:
        examples(tmp_path / "a.jsonl").survey()
    assert message in str(caught.value)


def test_csv_with_a_ragged_row_and_other_suffixes(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,good\nb\n")
    with pytest.raises(RecipeError, match=r"a.csv:3: has 1 values for 2 columns"):
        examples(tmp_path / "a.csv").survey()
    with pytest.raises(RecipeError, match=r"a.txt: is none of .jsonl, .csv, .parquet"):
        examples(tmp_path / "a.txt").survey()
    with pytest.raises(RecipeError, match=r"absent.jsonl: cannot be read"):
        examples(tmp_path / "absent.jsonl").survey()
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"b.jsonl: is not UTF-8"):
        examples(tmp_path / "b.jsonl").survey()


def test_a_number_that_is_no_label(tmp_path):
    for label in (2, -1, True, "x", 0.5):
        jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": label}])
        with pytest.raises(RecipeError, match=r"a.jsonl:1: the label .* is no number from 0 to 1"):
            examples(tmp_path / "a.jsonl", labels=()).survey()
