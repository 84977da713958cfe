"""A tokenizer's class that only transformers 5 knows is told by plan and inspect; the name that the note gives loads alike."""

import json
import shutil

from support.recipes import recipe
from transformers import AutoTokenizer

import graftkit
from graftkit.checkpoint.tokenizer.class_note import KNOWN_NAME, NEW_NAME


def test_the_note_and_the_name_that_it_gives(demo, tmp_path):
    source = shutil.copytree(demo, tmp_path / "source")
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert config["tokenizer_class"] == KNOWN_NAME  # what ships is for every version
    grows = {"op": "extend_vocab", "tokens": ["graftkit"]}

    def said():
        plan, found = graftkit.plan(recipe(source, tmp_path / "out", grows)), graftkit.inspect(source)
        return [any(NEW_NAME in note for note in notes) for notes in (plan.notes, found.findings)]

    assert said() == [False, False]
    known = AutoTokenizer.from_pretrained(source)
    path.write_text(json.dumps({**config, "tokenizer_class": NEW_NAME}))
    assert said() == [True, True]
    new = AutoTokenizer.from_pretrained(source)
    assert type(new) is type(known)
    assert (new.backend_tokenizer.to_str(), new.special_tokens_map) == (
        known.backend_tokenizer.to_str(),
        known.special_tokens_map,
    )
