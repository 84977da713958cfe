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


LORA = {"op": "add_lora", "r": 4, "target_modules": ["q_proj"]}
TOKENS = {"op": "extend_vocab", "special_tokens": ["<|tool|>"]}


def test_an_adapter_has_a_card_of_its_own(source, tmp_path):
    output, report = applied(source, tmp_path / "run", LORA)
    text = (output / "adapter/README.md").read_text()
    assert str(tmp_path) not in text
    front, body = split_front_matter(text)
    assert front == {
        "base_model": "../../../source", "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "graftkit"],
    }  # fmt: skip
    assert (output / "adapter" / front["base_model"] / "config.json").is_file()
    assert report["verdict"] in body
    assert '| target_modules | `["q_proj"]` |' in body
    assert "adapter/README.md" in {entry["name"] for entry in report["files"]}


def test_an_adapter_s_card_names_the_base_that_is_written_with_it(source, tmp_path):
    output, _ = applied(source, tmp_path / "run", TOKENS, LORA)
    front, _ = split_front_matter((output / "adapter/README.md").read_text())
    assert front["base_model"] == ".."


def test_peft_s_own_card_goes_on_from_it_after_training(source, tmp_path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    output, _ = applied(source, tmp_path / "run", LORA)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(source), output / "adapter", is_trainable=True)
    model.save_pretrained(output / "adapter")
    front, body = split_front_matter((output / "adapter/README.md").read_text())
    assert {"lora", "graftkit"} & set(front["tags"]) == {"lora"}
    assert "# An adapter made with graftkit" in body
    assert "- PEFT" in body
