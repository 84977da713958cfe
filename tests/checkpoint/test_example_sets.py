"""Texts with several labels: as a list, or as a field for each label; every complaint with its line."""

import json

import pytest

from graftkit.checkpoint.example_sets import SetExample, SetFile
from graftkit.errors import RecipeError

LISTS = [["good"], ["bad"], ["good", "bad"], []]
ROWS = [{"text": f"text {i}", "label": LISTS[i % 4]} for i in range(12)]


def jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def examples(path, labels=("good", "bad"), label="label", count=2):
    return SetFile(path, "text", label, tuple(labels), count)


def test_lists_of_labels(tmp_path):
    file = examples(jsonl(tmp_path / "a.jsonl"))
    assert list(file.read())[1:4] == [
        SetExample(2, "text 1", (1,)), SetExample(3, "text 2", (0, 1)), SetExample(4, "text 3", ()),
    ]  # fmt: skip
    assert file.survey() == [(0,), (1,), (0, 1), ()] * 3
    numbers = [{**row, "label": [["good", "bad"].index(name) for name in row["label"]]} for row in ROWS]
    assert examples(jsonl(tmp_path / "b.jsonl", numbers), labels=()).survey() == [(0,), (1,), (0, 1), ()] * 3


def test_a_field_for_each_label_in_every_spelling(tmp_path):
    fields = [{"text": row["text"], "good": int("good" in row["label"]), "bad": "bad" in row["label"]} for row in ROWS]
    assert examples(jsonl(tmp_path / "a.jsonl", fields)).survey() == [(0,), (1,), (0, 1), ()] * 3
    lines = [f"{row['text']},{int(row['good'])}, {str(row['bad']).lower()}" for row in fields]
    (tmp_path / "a.csv").write_text("\n".join(["text,good,bad", *lines]))
    assert examples(tmp_path / "a.csv").survey() == [(0,), (1,), (0, 1), ()] * 3


def test_a_list_in_a_csv_file_is_json(tmp_path):
    lines = ['"{}","{}"'.format(row["text"], json.dumps(row["label"]).replace('"', '""')) for row in ROWS]
    (tmp_path / "a.csv").write_text("\n".join(["text,kinds", *lines]))
    assert examples(tmp_path / "a.csv", label="kinds").survey() == [(0,), (1,), (0, 1), ()] * 3


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert examples(tmp_path / "a.parquet").survey() == [(0,), (1,), (0, 1), ()] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a", "label": ["good"]}\n{"text": "a"}\n', "a.jsonl:2: has no field 'label' and none for the label 'good'; its fields are: text"),
        ('{"text": "a", "good": 1}\n', "a.jsonl:1: has no field 'label' and none for the label 'bad'; its fields are: text, good"),
        ('{"text": "a", "good": 2, "bad": 0}\n', "a.jsonl:1: the field of the label 'good' is neither 0 nor 1: '2'"),
        ('{"text": "a", "good": 1, "bad": "x"}\n', "a.jsonl:1: the field of the label 'bad' is neither 0 nor 1: 'x'"),
        ('{"text": "a", "good": 1, "bad": [0]}\n', "a.jsonl:1: the field of the label 'bad' is neither 0 nor 1"),
        ('{"text": "a", "label": "good"}\n', "a.jsonl:1: label is no list of labels, found 'good'; write [\"a\", \"b\"], or [] for none"),
        ('{"text": "a", "label": null}\n', "a.jsonl:1: label is no list of labels, found 'None'"),
        ('{"text": "a", "label": "[good"}\n', "a.jsonl:1: label is no list of labels, found '[good'"),
        ('{"text": "a", "label": ["ugly"]}\n', "a.jsonl:1: the label 'ugly' is none of the recipe's: good, bad"),
        ('{"text": "a", "label": ["good", "bad", "good"]}\n', "a.jsonl:1: names the label 'good' twice"),
        ('{"text": "a", "label": [["good"]]}\n', "a.jsonl:1: the label '['good']' is none of the recipe's"),
        ('{"text": "", "label": []}\n', "a.jsonl:1: text is empty or no text"),
        ('{"label": []}\n', "a.jsonl:1: has no field 'text'; its fields are: label"),
        ('{"text": "a", "label": ["good"]}\n{"text": "a", "label": []}\n' * 3, "label 'bad' has 0 examples; 3 are needed"),
        ('{"text": "a", "label": ["good", "bad"]}\n{"text": "a", "label": ["good"]}\n' * 3, "label 'good' has 0 examples without it; 3 are needed"),
    ],
)  # fmt: skip
def test_every_complaint_names_its_line(text, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(RecipeError) as caught:
        examples(tmp_path / "a.jsonl").survey()
    assert message in str(caught.value)
