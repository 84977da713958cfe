"""Two tables that were one and are equal still: no output shows it, and training would move them apart."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.adapters import edit_adapter, make_adapter
from support.families import build

from graftkit import engine
from graftkit.compare import verify
from graftkit.errors import VerificationFailed

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


def test_a_merge_that_unties_equal_tables_writes_nothing(tmp_path):
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"], "task_type": "CAUSAL_LM"}
    base, adapter = make_adapter(tmp_path, "LlamaForCausalLM", tie=True, **config)

    def equal(tensors):
        names = [next(name for name in tensors if part in name) for part in ("embed_tokens", "lm_head")]
        return {**tensors, names[1]: tensors[names[0]].clone()}

    edited = edit_adapter(adapter, tmp_path / "equal", equal)
    operation = {"op": "merge_adapter", "adapter": str(edited)}
    recipe = {"version": 1, "base_model": str(base), "operations": [operation], "output": str(tmp_path / "out")}
    with pytest.raises(VerificationFailed, match="were tied and are two tensors now, equal still"):
        engine.apply(recipe)
    assert not (tmp_path / "out").exists()
