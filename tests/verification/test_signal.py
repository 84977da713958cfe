"""Signal before and after: figures by hand, blocks that leave the band, new blocks, and models of several kinds."""

import html
import json
import math
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.blocks import with_blocks

import graftkit
from graftkit.verification.signal import compare_signal, statistics
from graftkit.verification.signal.blocks import counterparts, stacks
from graftkit.verification.signal.report import ROUNDED
from graftkit.verification.subject import Subject


def altered(source, place, change):
    """A copy of a checkpoint whose tensors ``change`` has altered in place."""
    shutil.copytree(source, place)
    tensors = load_file(place / "model.safetensors")
    change(tensors)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    return place


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "bert", "bert_base", "t5", "bart"])
def test_a_copy_has_the_same_signal(family, sources):
    found = compare_signal(Subject(sources(family), sources(family)))
    assert found.failures == ()
    assert found.verdict == "Every figure of every block is what it was."
    keys = {figure.key for figure in found.figures}
    assert {"rms", "ratio", "kurtosis", "cosine", "gradient"} <= keys, found.absent
    assert "entropy" in keys or found.absent
    assert all(len(figure.after) == len(figure.before) == 2 for figure in found.figures)
    assert all(
        low <= mean <= high for f in found.figures for low, mean, high in zip(f.low, f.after, f.high, strict=True)
    )
    assert len({figure.stack for figure in found.figures}) == (2 if family in ("t5", "bart") else 1)
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_noise_is_that_of_rounding_and_belongs_to_the_dtype(sources, dtype):
    found = compare_signal(Subject(sources("llama", dtype), sources("llama", dtype)))
    rms = next(figure for figure in found.figures if figure.key == "rms")
    assert all(0 <= noise <= torch.finfo(getattr(torch, dtype)).eps * max(rms.high) for noise in rms.noise)
    assert any(noise > 0 for figure in found.figures for noise in figure.noise)


def test_the_figures_are_those_of_the_hidden_states(sources):
    """The first text alone, through the plain forward, gives what the report says of a probe of one text."""
    from graftkit.running.probes import Probe
    from graftkit.verification.signal.run import measure

    model = transformers.AutoModelForCausalLM.from_pretrained(sources("llama"), attn_implementation="eager").eval()
    ids = torch.randint(300, (1, 12), generator=torch.Generator().manual_seed(0))
    found = measure(model, Probe("one", ids, torch.ones_like(ids)), frozenset())
    (blocks,) = found.blocks.values()
    output = model(ids, output_hidden_states=True, output_attentions=True, labels=ids)
    first, second = (output.hidden_states[i][0].detach().double() for i in (0, 1))
    assert blocks[0]["rms"] == [pytest.approx(float(second.square().mean().sqrt()))]
    ratio = float((second - first).square().mean().sqrt() / first.square().mean().sqrt())
    assert blocks[0]["ratio"] == [pytest.approx(ratio)]
    (grad,) = torch.autograd.grad(output.loss, output.hidden_states[1])
    assert blocks[0]["gradient"] == [pytest.approx(float(grad.double().square().mean().sqrt()), rel=1e-4)]
    weights = output.attentions[1][0].detach().double()
    entropy = -(weights * weights.clamp(min=1e-300).log()).sum(-1).mean()
    assert blocks[1]["entropy"] == [pytest.approx(float(entropy))]
    assert found.loss == "next-token loss"
    assert all(parameter.requires_grad for parameter in model.parameters()), "left as it was"


def test_statistics_by_hand():
    assert statistics.rms(torch.tensor([[3.0, 4.0]]).double()) == pytest.approx(math.sqrt(12.5))
    assert statistics.kurtosis(torch.tensor([[-1.0, 1.0]]).double()) == 1
    assert statistics.kurtosis(torch.zeros(2, 2).double()) == 0
    normal = torch.randn(400, 400, generator=torch.Generator().manual_seed(0)).double()
    assert statistics.kurtosis(normal) == pytest.approx(3, abs=0.05)
    assert statistics.token_cosine(torch.ones(3, 4).double()) == pytest.approx(1)
    assert statistics.token_cosine(torch.eye(4).double()) == pytest.approx(0)
    assert statistics.entropy(torch.full((2, 3, 4), 0.25)) == pytest.approx(math.log(4))


def test_a_block_that_is_louder_is_named(sources, tmp_path):
    def louder(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"] *= 40

    found = compare_signal(Subject(sources("llama"), altered(sources("llama"), tmp_path / "loud", louder)))
    outside = {figure.key: figure.outside for figure in found.figures}
    assert 1 in outside["rms"]
    assert 1 in outside["ratio"]
    assert 0 not in outside["rms"]
    assert "block 1 (residual rms" in found.verdict
    assert found.failures == ()
    assert any(result == "1 outside" for _, result, _ in found.rows())


def test_collapsed_tokens_and_flat_attention_are_seen(sources, tmp_path):
    def collapse(tensors):
        table = tensors["model.embed_tokens.weight"]
        table[:] = table.mean(0) + 1e-4 * table
        tensors["model.layers.1.self_attn.q_proj.weight"] *= 0

    result = altered(sources("llama"), tmp_path / "flat", collapse)
    figures = {figure.key: figure for figure in compare_signal(Subject(sources("llama"), result)).figures}
    assert min(figures["cosine"].after) > 0.99 > max(figures["cosine"].before)
    assert figures["cosine"].outside
    assert figures["entropy"].after[1] >= figures["entropy"].before[1]


def test_what_is_not_finite_is_a_failure(sources, tmp_path):
    def poison(tensors):
        tensors["model.layers.1.self_attn.k_proj.weight"][0, 0] = math.nan

    found = compare_signal(Subject(sources("llama"), altered(sources("llama"), tmp_path / "nan", poison)))
    assert any("block 1" in failure and "nan" in failure for failure in found.failures)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_new_block_has_no_before_and_the_others_keep_theirs(sources, tmp_path):
    found = compare_signal(Subject(sources("llama"), with_blocks(sources("llama"), tmp_path / "grown", (0, ~0, 1))))
    assert found.new_blocks == ("model.layers.1",)
    rms = next(figure for figure in found.figures if figure.key == "rms")
    assert rms.before[1] is None
    assert rms.after[1] == rms.after[0] == rms.before[0]
    assert rms.after[2] == rms.before[2]
    ratio = next(figure for figure in found.figures if figure.key == "ratio")
    assert ratio.after[1] == 0
    assert 1 in ratio.outside


def test_blocks_are_told_apart_by_what_they_hold():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(3)])
    model.empty = torch.nn.ModuleList([torch.nn.ReLU()])
    (blocks,) = stacks(model).values()
    assert counterparts(blocks, [blocks[0], torch.nn.Linear(3, 3), *blocks[1:]]) == [0, None, 1, 2]
    assert counterparts(blocks, blocks[1:]) == [1, 2]
    assert counterparts(blocks, blocks[::-1]) == [0, 1, 2]


def test_a_recipe_asks_for_it_and_the_report_and_page_hold_it(sources, tmp_path):
    operation = {"op": "extend_vocab", "tokens": ["etao"], "init": "mean"}
    recipe = {"version": 1, "base_model": str(sources("llama")), "operations": [operation],
              "verify": {"signal": True}, "output": str(tmp_path / "out")}  # fmt: skip
    report = graftkit.apply(recipe)
    (signal,) = [check for check in report.checks if check.name == "signal"]
    assert not any(figure.outside for figure in signal.figures)
    written = json.loads((tmp_path / "out" / "graft_report.json").read_text())
    assert written["checks"]["signal"]["verdict"] == signal.verdict
    assert "Signal before and after" not in {item["what"] for item in written["not_checked"]}
    page = (tmp_path / "out" / "graft_report.html").read_text()
    assert page.count('class="band"') == len(signal.figures)
    assert html.escape(signal.verdict) in page


def test_an_adapter_is_measured_on_its_base(sources, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(sources("llama"))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "zero")
    for name, parameter in adapted.named_parameters():
        if "layers.1.mlp" in name and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2.0)
    adapted.save_pretrained(tmp_path / "loud")
    found = compare_signal(Subject(sources("llama"), sources("llama"), adapter=tmp_path / "zero"))
    assert not any(figure.outside for figure in found.figures)
    for figure in found.figures:
        for before, after, noise in zip(figure.before, figure.after, figure.noise, strict=True):
            assert abs(after - before) <= ROUNDED * noise
    found = compare_signal(Subject(sources("llama"), sources("llama"), adapter=tmp_path / "loud"))
    outside = {figure.key: figure.outside for figure in found.figures}
    assert 1 in outside["ratio"]
    assert 0 not in outside["ratio"]
