"""The model that ships with the project is a complete checkpoint, and as good as its card says."""

import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def loaded():
    """Model (float32), tokenizer and what the load reported, from plain ``from_pretrained``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = ROOT / "recipes" / "models" / "demo-lm"
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    return model.eval(), AutoTokenizer.from_pretrained(path), info


@pytest.fixture(scope="module")
def card():
    return (ROOT / "recipes" / "models" / "demo-lm" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def held_out(loaded, card):
    """Token ids of the held-out topics, when this Python ships the text that the card speaks of."""
    import train_demo_model as training

    _, texts = training.texts()
    if training.digest(texts) not in card:
        pytest.skip("this release of Python ships other documentation topics than the one that the model learned from")
    return training.encode(loaded[1], texts)


def stated(card, pattern):
    return float(re.search(pattern + r" (\d+\.\d+)", card)[1])


def test_it_fits_into_git(demo):
    assert sum(file.stat().st_size for file in demo.iterdir()) < 4_000_000


def test_it_loads_with_nothing_missing(loaded):
    model, tokenizer, info = loaded
    assert not any(info.values()), info
    assert not model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight.shape[0] == 2_048
    assert len(tokenizer) == 2_040
    assert tokenizer.pad_token is None
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (0, 1)


def test_the_held_out_loss_is_what_the_card_says(loaded, held_out, card):
    import train_demo_model as training

    loss, count = training.held_out_loss(loaded[0], held_out)
    assert loss == pytest.approx(stated(card, "held-out loss:"), abs=2e-3)
    assert f"{count:,} tokens" in card


def test_it_learned_far_more_than_the_frequencies_of_tokens(loaded, held_out, card):
    import train_demo_model as training

    if f"{sum(map(len, training.topics.values())):,} characters" not in card:
        pytest.skip("this release of Python ships another text than the one that the model learned from")
    unigram = training.unigram_loss(held_out, training.encode(loaded[1], training.texts()[0]))
    assert unigram == pytest.approx(stated(card, "on the same tokens:"), abs=1e-3)
    assert training.held_out_loss(loaded[0], held_out)[0] < unigram - 1


def test_one_swapped_pair_of_rows_shows_in_the_loss(loaded, held_out):
    """The comparison with the card can fail: two rows of the head exchanged are seen at its tolerance."""
    import torch
    import train_demo_model as training

    model = loaded[0]
    article, stop = loaded[1].convert_tokens_to_ids(["Ġthe", "."])
    before, _ = training.held_out_loss(model, held_out)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        original = weight[[article, stop]].clone()
        weight[[stop, article]] = original
        after, _ = training.held_out_loss(model, held_out)
        weight[[article, stop]] = original
    assert after - before > 2e-3


def test_the_loss_is_measured_on_text_that_the_training_text_does_not_repeat():
    """Topics repeat one another at length: on those the loss would measure memory."""
    import train_demo_model as training

    corpus, measured = training.texts()
    assert len(measured) >= 4
    assert max(training.repeated_share(text, corpus) for text in measured) < 0.1
    assert "with" in training.held_out_topics()
    assert training.repeated_share(training.topics["with"], corpus) > 0.9
    assert training.topics["with"] not in measured


def test_it_writes_something_like_documentation(loaded):
    model, tokenizer, _ = loaded
    prompt = tokenizer("The import statement", return_tensors="pt")
    written = tokenizer.decode(model.generate(**prompt, max_new_tokens=40, do_sample=False, pad_token_id=1)[0])
    words = set(re.findall(r"[a-z]+", written[len("The import statement") :].lower()))
    assert len(words) >= 6
    assert words & {"the", "a", "is", "of", "to", "in"}
