"""The front matter of the model card: the new task instead of the old one, and no path of the machine that wrote it."""

import shutil

import pytest
from support.recipes import applied

from graftkit.report.model_card import split_front_matter

CARD = """---
license: apache-2.0
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, my-tag]
---
# Mine
"""


@pytest.fixture
def source(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "source")
    (tmp_path / "source/README.md").write_text(CARD)
    return tmp_path / "source"


def front_of(source, tmp_path, operation):
    output, _ = applied(source, tmp_path / "run", operation)
    text = (output / "README.md").read_text()
    assert str(tmp_path) not in text
    return split_front_matter(text)


def test_a_new_head_has_its_own_task(source, tmp_path):
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["no", "yes"], "pad_token": "</s>"}
    front, body = front_of(source, tmp_path, head)
    assert front == {
        "license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "text-classification",
        "tags": ["my-tag", "graftkit"], "base_model": "../../source",
    }  # fmt: skip
    assert body.rstrip().endswith("# Mine")


def test_what_still_holds_is_kept(source, tmp_path):
    front, _ = front_of(source, tmp_path, {"op": "extend_vocab", "tokens": ["zz"]})
    assert front["pipeline_tag"] == "sentence-similarity"
    assert front["tags"] == ["sentence-transformers", "feature-extraction", "my-tag", "graftkit"]


@pytest.mark.parametrize("front", ["tags: 5\npipeline_tag: [a, b]", "tags: [{a: b}, [c]]\nlibrary_name: {d: e}"])
def test_a_front_matter_of_other_types_is_no_fault(source, tmp_path, front):
    (source / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["no", "yes"], "pad_token": "</s>"}
    found, _ = front_of(source, tmp_path, head)
    assert (found["pipeline_tag"], found["tags"][-1]) == ("text-classification", "graftkit")
