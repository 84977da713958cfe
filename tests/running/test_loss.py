"""One loss: the mean of a batch, and text by text, so that no text has a part in another's."""

from dataclasses import replace

import pytest
import torch
import transformers

from graftkit.running.inputs import feed
from graftkit.running.loss import loss_of, losses_of_texts
from graftkit.running.probes import Probe

IDS = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0))
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def model_of(name):
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**SIZES)).eval()


def texts(model, probe):
    with torch.no_grad():
        return losses_of_texts(model(**feed(model, probe, frozenset())), probe, generates=model.can_generate())


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertForMaskedLM"])
def test_over_ids_the_mean_of_the_batch_is_that_of_its_texts(name):
    model, probe = model_of(name), Probe("texts", IDS, torch.ones_like(IDS))
    found, word = texts(model, probe)
    assert found.dtype == torch.float64
    assert float(found.mean()) == pytest.approx(loss_of(model, probe, frozenset()).item(), rel=1e-6)
    assert word == ("next-token loss" if name == "LlamaForCausalLM" else "loss of naming each token in its place")


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertForMaskedLM", "BertForSequenceClassification", "BertModel"])
def test_a_text_s_loss_does_not_depend_on_the_others(name):
    model = model_of(name)
    mask = torch.ones_like(IDS)
    mask[1, 6:] = 0
    probe = Probe("texts", IDS, mask)
    found, _ = texts(model, probe)
    turned, _ = texts(model, replace(probe, ids=IDS.flip(0), mask=mask.flip(0)))
    assert turned.flip(0).tolist() == pytest.approx(found.tolist(), rel=1e-5)
    other = IDS.clone()
    other[0] += 1
    changed, _ = texts(model, replace(probe, ids=other))
    assert changed[1:].tolist() == pytest.approx(found[1:].tolist(), rel=1e-5)
    assert changed[0] != found[0]


def test_padding_has_no_part_in_the_loss():
    model, mask = model_of("LlamaForCausalLM"), torch.ones_like(IDS)
    mask[:, 6:] = 0
    padded, _ = texts(model, Probe("padded", IDS, mask))
    cut, _ = texts(model, Probe("cut", IDS[:, :6], mask[:, :6]))
    assert padded.tolist() == pytest.approx(cut.tolist(), rel=1e-5)
