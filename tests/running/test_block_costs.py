"""What dropping each block costs: the figures are those of drop_blocks, an idle block costs nothing, and what is not measured is said."""

import json
import math

import pytest
import torch
from support import recipes
from support.blocks import with_blocks
from support.command import assert_one_line, here
from support.tiny import build
from transformers import AutoTokenizer

import graftkit
from graftkit.running.predictions import divergences
from graftkit.selftest.copies import edit_tensor

pytestmark = pytest.mark.numerical

TEXTS = ("The with statement is used to wrap the execution of a block.", "def area(radius): return 3.14 * radius ** 2")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def outputs(directory):
    """Logits in float64 of each text, and its ids, by transformers alone."""
    model, tokenizer = recipes.load(directory)[0], AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            yield model(input_ids=ids).logits[0].double(), ids[0]


def perplexity(found):
    losses = [torch.nn.functional.cross_entropy(a[:-1], ids[1:], reduction="none") for a, ids in found]
    return math.exp(float(torch.cat(losses).mean()))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("LlamaForCausalLM", {1}), pytest.param("GPT2LMHeadModel", {0, 1, 2}, marks=pytest.mark.slow)],
)
def test_the_figures_are_those_of_the_model_that_drop_blocks_writes(name, blocks, texts, tmp_path):
    source = tmp_path / "source"
    depth = "num_hidden_layers" if name == "LlamaForCausalLM" else "n_layer"
    build(name, source, config_overrides={depth: 3})
    found = graftkit.inspect(source, texts=texts).blocks
    whole = list(outputs(source))
    assert found.perplexity == pytest.approx(perplexity(whole), rel=1e-5)
    assert found.tokens == sum(len(ids) for _, ids in whole)
    assert [cost.kl for cost in found.blocks] == sorted(cost.kl for cost in found.blocks)
    for cost in (cost for cost in found.blocks if cost.block in blocks):
        dropped = tmp_path / f"without {cost.block}"
        graftkit.apply(recipes.recipe(source, dropped, {"op": "drop_blocks", "blocks": [cost.block]},
                                      verify={"outputs": False}))  # fmt: skip
        without = list(outputs(dropped))
        terms = [
            (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1)
            for (a, _), (b, _) in zip(whole, without, strict=True)
        ]
        assert cost.kl == pytest.approx(float(torch.cat(terms).mean()), rel=1e-4)
        assert cost.perplexity == pytest.approx(perplexity(without), rel=1e-5)


def test_a_block_that_does_nothing_costs_nothing_and_comes_first(sources, texts, tmp_path):
    idle = with_blocks(sources("llama"), tmp_path / "idle", (0, ~0, 1))
    first, *others = graftkit.inspect(idle, texts=texts).blocks.blocks
    assert (first.block, first.kl) == (1, 0)
    assert first.cosine == pytest.approx(1, abs=1e-12)
    assert all(cost.kl > 0 and cost.cosine < 1 for cost in others)


def test_without_logits_blocks_are_ranked_by_cosine_and_that_is_said(sources, texts):
    done = here("inspect", sources("bert_base"), "--blocks", "--texts", texts)
    assert done.returncode == 0, done.stderr
    assert "not measured: BertModel gives no logits over token ids: neither KL nor perplexity" in done.stdout
    costs = graftkit.inspect(sources("bert_base"), texts=texts).blocks.blocks
    assert [cost.cosine for cost in costs] == sorted((cost.cosine for cost in costs), reverse=True)
    assert all(cost.kl is None and cost.perplexity is None for cost in costs)


def test_a_model_that_names_hidden_words_has_no_perplexity(sources, texts):
    done = here("inspect", sources("bert"), "--blocks", "--texts", texts, "--json")
    found = json.loads(done.stdout)["blocks"]
    assert found["perplexity"] is None
    assert found["not_measured"] == "BertForMaskedLM predicts no next token: no perplexity"
    assert all(cost["kl"] > 0 for cost in found["blocks"])


def test_a_block_that_cannot_be_dropped_is_named_with_its_reason(texts, tmp_path):
    build("DiffLlamaForCausalLM", tmp_path / "source")
    done = here("inspect", tmp_path / "source", "--blocks", "--texts", texts)
    assert "block 0 cannot be dropped: block 1 as block 0: self_attn.lambda_init would be" in done.stdout
    last = graftkit.inspect(tmp_path / "source", texts=texts).blocks.blocks[-1]
    assert (last.block, last.kl, last.perplexity) == (0, None, None)
    assert last.cosine is not None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--blocks",), 2, "--blocks: is for both, --blocks --texts FILE; add --texts FILE"),
        (("--texts", "a.txt"), 2, "--texts: is for both, --blocks --texts FILE; add --blocks"),
        (("--blocks", "--texts", "none.txt"), 2, "none.txt: cannot be read"),
        (("--blocks", "--texts", "README.md"), 2, "README.md: is none of .txt"),
    ],
)
def test_what_is_missing_or_unreadable_is_one_line(arguments, code, words, demo):
    assert_one_line(here("inspect", demo, *arguments), code, words)


def test_a_class_without_a_list_of_blocks_and_texts_of_nothing_are_refused(texts, tmp_path, demo):
    build("AlbertForMaskedLM", tmp_path / "albert")
    refused = here("inspect", tmp_path / "albert", "--blocks", "--texts", texts)
    assert_one_line(refused, 3, "AlbertForMaskedLM: has no list of layers")
    (tmp_path / "empty.txt").write_text("\n")
    assert_one_line(here("inspect", demo, "--blocks", "--texts", tmp_path / "empty.txt"), 2, "holds no text")


def test_divergence_is_over_the_last_axis_and_masked_ids_count_for_nothing():
    old, new = torch.tensor([[0.0, 1.0, -math.inf]] * 2), torch.tensor([[0.0, 1.0, -math.inf], [1.0, 0.0, -math.inf]])
    same, other = divergences(old, new).tolist()
    assert same == 0
    p, q = 1 / (1 + math.e), math.e / (1 + math.e)
    assert other == pytest.approx(p * math.log(p / q) + q * math.log(q / p))


def test_a_model_whose_logits_are_no_numbers_is_not_ranked(texts, tmp_path):
    source = tmp_path / "source"
    build("LlamaForCausalLM", source, config_overrides={"num_hidden_layers": 2})
    edit_tensor(source, "model.layers.1.mlp.down_proj.weight", lambda values: values.fill_(math.nan))
    assert_one_line(here("inspect", source, "--blocks", "--texts", texts), 3, "its logits hold NaN")
