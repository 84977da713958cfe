"""Two tables that were one and are equal still: no output shows it, and training would move them apart."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.families import build

from graftkit.compare import verify

SAID = "'lm_head.weight' and 'model.embed_tokens.weight' were tied and are two tensors now, equal still"


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return build("llama_tied", tmp_path_factory.mktemp("tied") / "source")


def stored_twice(source, target, *, flag):
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": flag}))
    return str(target)


def test_verify_sees_that_a_tie_is_lost(tied, tmp_path):
    found = verify(str(tied), stored_twice(tied, tmp_path / "copy", flag=False), outputs=False).found["bytes"]
    assert len(found) == 1
    assert SAID in found[0]


def test_a_pair_that_is_stored_twice_and_tied_is_none(tied, tmp_path):
    assert verify(str(tied), stored_twice(tied, tmp_path / "copy", flag=True), outputs=False).failures == ()
