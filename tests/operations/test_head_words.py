"""Heads whose rows are words of the vocabulary: their logits are those of the language model that they come from."""

import json

import pytest
import torch
import transformers
from support.families import build, write_tokenizer

import graftkit
from graftkit.operations.heads.words import fit_scale

WORDS = {"cold": ["e", "t"], "warm": "th"}
SMALL = {
    "vocab_size": 331, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
}  # fmt: skip
TEXT = "the rain has not stopped"


def model_of(family):
    t = transformers
    if family == "minicpm3":  # divides the hidden states before its rows
        config = t.MiniCPM3Config(
            **SMALL, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
            v_head_dim=8, dim_model_base=8, scale_depth=1.4,
        )  # fmt: skip
        return t.MiniCPM3ForCausalLM(config)
    if family == "modernbert":
        return t.ModernBertForMaskedLM(
            t.ModernBertConfig(
                **SMALL, cls_token_id=1, sep_token_id=2, classifier_pooling="cls", global_attn_every_n_layers=1
            )
        )
    if family == "phi":  # its rows have a bias, and the classifier's have none
        return t.PhiForCausalLM(t.PhiConfig(**SMALL))
    raise ValueError(family)


def source(family, place, **changes):
    """A checkpoint with trained-looking weights and values of config.json changed."""
    place.mkdir()
    if family in ("minicpm3", "modernbert", "phi"):
        torch.manual_seed(0)
        model = model_of(family)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        model.save_pretrained(place)
        write_tokenizer(place)
    else:
        build(family, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **changes}))
    return place


def recipe(base, output, words=WORDS, *, outputs=False, **fields):
    operation = {
        "op": "replace_head", "task": "sequence_classification", "labels": list(words),
        "init": {"scheme": "verbalizer", "words": words}, **fields,
    }  # fmt: skip
    return {"version": 1, "base_model": str(base), "operations": [operation], "output": str(output),
            "verify": {"outputs": outputs}}  # fmt: skip


def zero_shot(base, *, position):
    """The language model's own logits of the words, averaged over those of a label."""
    name = json.loads((base / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = [tokenizer.convert_tokens_to_ids([words] if isinstance(words, str) else words) for words in WORDS.values()]
    with torch.inference_mode():
        logits = model(input_ids=tokenizer(TEXT, return_tensors="pt").input_ids).logits[0, position]
    return torch.stack([logits[..., index].mean(-1) for index in ids], -1)


def classified(output, loader="AutoModelForSequenceClassification"):
    model, info = getattr(transformers, loader).from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    with torch.inference_mode():
        return model.eval()(input_ids=tokenizer(TEXT, return_tensors="pt").input_ids).logits[0]


@pytest.mark.parametrize(
    ("family", "scale", "position"),
    [("llama", 1, -1), ("llama_tied", 1, -1), ("gpt2", 1, -1), ("minicpm3", 0.25, -1), ("modernbert", 1, 0)],
)
def test_the_logits_are_those_of_the_words(family, scale, position, tmp_path):
    base = source(family, tmp_path / "base")
    report = graftkit.apply(recipe(base, tmp_path / "out"))
    figures = report.figures["operations.0.replace_head"]
    assert figures["logit_scale"] == scale
    assert figures["position"] == {-1: "last", 0: "first"}[position]
    wanted = zero_shot(base, position=position)
    assert wanted.std() > 1e-2
    torch.testing.assert_close(classified(tmp_path / "out"), wanted, rtol=1e-4, atol=1e-5)


def test_each_token_gets_the_logits_of_the_words(tmp_path):
    base = source("llama", tmp_path / "base")
    report = graftkit.apply(recipe(base, tmp_path / "out", outputs=True, task="token_classification"))
    assert report.figures["operations.0.replace_head"]["position"] == "every"
    found = classified(tmp_path / "out", "AutoModelForTokenClassification")
    torch.testing.assert_close(found, zero_shot(base, position=slice(None)), rtol=1e-4, atol=1e-5)


def test_a_single_word_keeps_its_row_bit_for_bit(tmp_path):
    base = source("llama", tmp_path / "base")
    graftkit.apply(recipe(base, tmp_path / "out"))
    rows = transformers.AutoModelForCausalLM.from_pretrained(base).lm_head.weight
    made = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").score.weight
    index = transformers.AutoTokenizer.from_pretrained(base).convert_tokens_to_ids("th")
    assert torch.equal(made[1], rows[index])


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        (
            "bert",
            {},
            "BertForMaskedLM to BertForSequenceClassification: before its rows .*cls.predictions.transform.dense",
        ),
        ("roberta", {}, "lm_head.dense.weight.*the head has classifier.dense.bias"),
        ("bart", {}, "applies final_logits_bias; the head has classification_head.dense"),
        ("gemma2", {}, "caps its logits .final_logit_softcapping"),
        ("bert_base", {}, "BertModel has no language-model head to take rows from"),
        ("phi", {}, "the words have a bias in the language-model head.*'score.weight' has none"),
        ("modernbert", {"classifier_pooling": "mean"}, "the logits differ by .* of their size"),
    ],
)
def test_a_head_that_cannot_hold_it_is_refused(family, changes, reason, tmp_path):
    base = source(family, tmp_path / "base", **changes)
    with pytest.raises(graftkit.errors.InputRejected, match=reason):
        graftkit.apply(recipe(base, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "fields", "reason"),
    [
        ({"a": "e", "b": "thx"}, {}, r"words.b: 'thx' is 2 tokens, th\|x; choose another word"),
        ({"a": "e"}, {"labels": ["a", "b"]}, "has no word for the label 'b'"),
        ({"a": "e", "b": "t", "c": "h"}, {"labels": ["a", "b"]}, "init.words.c: is none of the labels: a, b"),
        ({"a": "e", "b": []}, {}, "words.b"),
        (WORDS, {"labels": [], "num_labels": 2}, "needs labels, which it gives words to"),
        (
            WORDS,
            {"task": "question_answering", "labels": []},
            "verbalizer is for sequence_classification and token_class",
        ),
    ],
)
def test_wrong_words_are_a_mistake_of_the_recipe(words, fields, reason, tmp_path):
    base = source("llama", tmp_path / "base")
    with pytest.raises(graftkit.errors.RecipeError, match=reason):
        graftkit.plan(recipe(base, tmp_path / "out", words, **fields))


def test_the_measurement_finds_a_scale_and_notices_what_is_no_scale():
    generator = torch.Generator().manual_seed(0)
    told = [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    assert fit_scale([one[-1] * 8 for one in told], told)[:2] == (0.125, "last")
    assert fit_scale([one[0] / 3 for one in told], told)[:2] == (pytest.approx(3), "first")
    assert fit_scale([one[-1].flip(0) for one in told], told)[2] > 0.1
    assert fit_scale([10 * torch.tanh(one[-1] / 10) for one in told], told)[2] > 1e-3
    assert fit_scale(told, told) == (1.0, "every", 0.0)
