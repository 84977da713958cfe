"""Bits per byte and cosines before and after: the same for the same model, whatever splits the text, and no number passes for one."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftkit.running.scored_texts import split_texts
from graftkit.verification.subject import Subject
from graftkit.verification.tokens.text_quality import EmbeddingReport, TextCheck, compare_vectors

TEXTS = ("The with statement is used to wrap the execution of a block.", "See also the try statement; café.")


def run(source, result, texts=TEXTS):
    return TextCheck(texts).run(Subject(source, result))


def test_a_model_beside_itself_is_itself(demo):
    found = run(demo, demo)
    assert found.before == found.after
    assert found.agreement == 1
    assert found.bytes == sum(len(text.encode()) for text in TEXTS)
    assert found.tokens_before == found.tokens_after
    assert found.failures == ()


def test_bits_are_those_of_the_models_own_loss(demo):
    """The mean cross-entropy that transformers gives, over bytes in place of tokens."""
    found = run(demo, demo, TEXTS[:1])
    tokenizer, model = AutoTokenizer.from_pretrained(demo), AutoModelForCausalLM.from_pretrained(demo).eval()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXTS[0])["input_ids"]]])
    with torch.inference_mode():
        loss = float(model(input_ids=ids, labels=ids).loss)  # summed in float32
    assert found.before == pytest.approx(loss * (ids.shape[1] - 1) / math.log(2) / len(TEXTS[0]), rel=1e-5)


def test_a_table_of_infinities_is_caught(demo, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(demo, broken)
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {**tensors, "lm_head.weight": tensors["lm_head.weight"] * torch.nan},
        broken / "model.safetensors",
        {"format": "pt"},
    )
    assert run(demo, broken).failures == ("texts: the bits of the result's texts are not finite",)


def test_rows_that_changed_places_cost_bits(demo, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(demo, other)
    tensors = load_file(other / "model.safetensors")
    shuffled = tensors["model.embed_tokens.weight"].roll(1, 0).contiguous()
    save_file({**tensors, "model.embed_tokens.weight": shuffled}, other / "model.safetensors", {"format": "pt"})
    found = run(demo, other)
    assert found.after > 1.5 * found.before
    assert found.agreement < 0.8


def test_an_encoder_is_measured_by_cosines(sources):
    found = run(sources("bert"), sources("bert"))
    assert isinstance(found, EmbeddingReport)
    assert found.mean == pytest.approx(1, abs=1e-12)
    assert found.others < 1


def test_vectors_that_are_no_numbers_are_caught():
    good = torch.eye(3, dtype=torch.float64)
    assert compare_vectors(good, good).failures == ()
    assert compare_vectors(good, good * torch.nan).failures == ("texts: vectors of the result's texts are not finite",)


def test_pieces_hold_the_whole_text_and_no_half_letters():
    text = "äöü" * 40
    pieces = [*split_texts((text,), 34, 10_000)]
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 32
    assert sum(len(piece.encode()) for piece in split_texts((text,) * 9, 34, 100)) < 100 + 32
