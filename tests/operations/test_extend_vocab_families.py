"""extend_vocab over a dozen families: reloaded by plain transformers, with the table grown and with padding rows taken."""

import json

import pytest
import torch
import transformers
from support import recipes
from support.families import FAMILIES, ROWS, TOKENS, build
from support.recipes import load

import graftkit

NEW = ["<|a|>", "<|b|>", "<|c|>"]


def recipe(source, output, **fields):
    return recipes.recipe(source, output, {"op": "extend_vocab", "special_tokens": NEW, **fields})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [TOKENS, ROWS], ids=["padding rows taken", "table grows"])
def test_old_behaviour_is_kept_and_new_rows_are_the_mean(family, tokens, sources, tmp_path):
    source = sources(family, tokens=tokens)
    report = graftkit.apply(recipe(source, tmp_path / "out", pad_to_multiple_of=8))
    assert report.outputs.passed
    assert all(item.bitwise or item.largest <= item.allowed for item in report.outputs.comparisons)
    (old, old_info), (new, info) = load(source), load(tmp_path / "out")
    assert info["missing_keys"] == old_info["missing_keys"] == set()
    assert info["unexpected_keys"] <= old_info["unexpected_keys"]
    size = -(-max(ROWS, tokens + 3) // 8) * 8
    table, before = new.get_input_embeddings().weight, old.get_input_embeddings().weight
    assert table.shape[0] == size == new.config.get_text_config().vocab_size
    kept = [i for i in range(ROWS) if not tokens <= i < tokens + 3]
    assert torch.equal(table[kept], before[kept])
    mean = before[:tokens].double().mean(0)
    made = [*range(tokens, tokens + 3), *range(max(ROWS, tokens + 3), size)]
    for index in made:
        assert torch.allclose(table[index].double(), mean, rtol=0, atol=1e-7)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [tokenizer.encode(token, add_special_tokens=False) for token in NEW] == [[tokens + i] for i in range(3)]
    assert tokenizer.decode([tokens + 1]) == "<|b|>"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_half_precision_is_kept(family, dtype, sources, tmp_path):
    report = graftkit.apply(recipe(sources(family, dtype=dtype), tmp_path / "out"))
    assert report.outputs.dtype == dtype
    assert {entry.dtype for entry in report.ledger} == {"BF16" if dtype == "bfloat16" else "F16"}


def test_sharding_is_kept_and_clean_shards_are_the_source_s_bytes(sources, tmp_path):
    source = sources("llama", shard_size="40KB", tokens=ROWS)
    graftkit.apply(recipe(source, tmp_path / "out"))
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    same = [name for name in shards if (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    dirty = {index["weight_map"]["lm_head.weight"], index["weight_map"]["model.embed_tokens.weight"]}
    assert set(same) == set(shards) - dirty


def test_the_output_bias_of_bert_gets_the_mean_bias(sources, tmp_path):
    source = sources("bert", tokens=ROWS)
    graftkit.apply(recipe(source, tmp_path / "out"))
    old, new = load(source)[0], load(tmp_path / "out")[0]
    before, after = old.cls.predictions.bias, new.cls.predictions.bias
    assert torch.equal(after[:ROWS], before)
    assert torch.allclose(after[ROWS:].double(), before.double().mean().expand(3), atol=1e-6)


def test_a_sibling_s_bias_is_extended_with_its_own_mean(sources, tmp_path):
    source = sources("bert_base_with_head", tokens=ROWS)
    report = graftkit.apply(recipe(source, tmp_path / "out"))
    grown = {change.name for change in report.plan.tensors}
    assert "cls.predictions.bias" in grown


def test_two_tables_that_are_stored_twice_but_differ_are_not_tied(sources, tmp_path):
    from safetensors.torch import load_file, save_file

    source = build("llama", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    report = graftkit.apply(recipe(source, tmp_path / "out", output_init="zeros"))
    assert not load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"][TOKENS : TOKENS + 3].any()
    assert any("not tied" in note for outcome in report.plan.outcomes for note in outcome.notes)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(graftkit.GraftkitError, match="output_init: has no meaning.*tied"):
        graftkit.apply(recipe(source, tmp_path / "other", output_init="zeros"))
