"""Old gradients beside the source's own noise: other kernels are no difference, and a planted one is."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from support.families import ROWS, build

from graftkit.architecture.correspondence import Correspondence
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.running.loss import loss_of
from graftkit.running.probes import Probe
from graftkit.verification.first_step import compare_first_step
from graftkit.verification.first_step.noise import UNIT_ROUNDOFF, OldGradients, null_gradients
from graftkit.verification.first_step.task import differentiable, gradients
from graftkit.verification.subject import Subject

pytestmark = pytest.mark.cross_section

KEY_BIAS = "bert.encoder.layer.0.attention.self.key.bias"
IDS = torch.randint(4, ROWS, (4, 24), generator=torch.Generator().manual_seed(3))
TEXTS = Probe("texts", IDS, torch.ones_like(IDS))
GROWN = Correspondence.of_ids(ROWS, ROWS + 3, ROWS, range(ROWS, ROWS + 3))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return build("bert", tmp_path_factory.mktemp("bert") / "source", tokens=ROWS)


@pytest.fixture(scope="module")
def old(source):
    model = transformers.BertForMaskedLM.from_pretrained(source).eval()
    with differentiable():
        found = gradients(model, loss_of(model, TEXTS, frozenset(), slice(ROWS)))
        return found, OldGradients(found, null_gradients(model, TEXTS, frozenset(), slice(ROWS), GROWN))


def other_kernels(source):
    """The same gradients by other orders of sums: eager attention, more columns of padding, one row after the other."""
    model = transformers.BertForMaskedLM.from_pretrained(source, attn_implementation="eager").eval()
    padded = replace(TEXTS, **{name: torch.nn.functional.pad(getattr(TEXTS, name), (0, 5)) for name in ("ids", "mask")})
    parts = [replace(TEXTS, ids=TEXTS.ids[row : row + 1], mask=TEXTS.mask[row : row + 1]) for row in range(4)]
    single = [gradients(model, loss_of(model, part, frozenset(), slice(ROWS))) for part in parts]
    yield gradients(model, loss_of(model, padded, frozenset(), slice(ROWS)))
    yield {name: sum(part[name] for part in single) / 4 for name in single[0]}


def test_what_is_zero_in_exact_arithmetic_is_no_difference_though_nothing_of_it_stays(source, old):
    found, judged = old
    own, largest = found[KEY_BIAS].norm(), found[KEY_BIAS.replace("bias", "weight")].norm()
    assert own < 1e-5 * largest
    for again in other_kernels(source):
        assert (again[KEY_BIAS] - found[KEY_BIAS]).norm() > 0.1 * own
        gap = judged.compare(again)
        assert not gap.differs, gap


def test_the_null_runs_are_all_made_and_change_nothing_over_the_real_numbers(source, old):
    """What they move goes away with the unit roundoff: in float64 it is below what float32 can hold at all."""
    noise = old[1].noise
    assert list(noise) == ["loss times 3", "rows reversed", "logits summed in reverse", "logits of the result's rows"]
    assert max(noise.values()) > UNIT_ROUNDOFF
    model = transformers.BertForMaskedLM.from_pretrained(source, dtype=torch.float64).eval()
    with differentiable():
        found = gradients(model, loss_of(model, TEXTS, frozenset(), slice(ROWS)))
        exact = OldGradients(found, null_gradients(model, TEXTS, frozenset(), slice(ROWS), GROWN)).noise
    assert exact.keys() == noise.keys()
    assert max(exact.values()) < UNIT_ROUNDOFF


@pytest.mark.parametrize("name", [KEY_BIAS, "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"])
@pytest.mark.parametrize("value", [1e-3, float("nan"), float("inf"), None])
def test_a_gradient_that_is_another_is_a_difference_at_its_name(old, name, value):
    found, judged = old
    scale = found[KEY_BIAS.replace("bias", "weight") if name == KEY_BIAS else name].norm()
    after = {key: gradient.clone() for key, gradient in found.items()}
    if value is None:
        del after[name]
    else:
        after[name].view(-1)[7] += value * scale
    gap = judged.compare(after)
    assert gap.differs
    assert gap.parameter == name


def test_rows_that_only_the_result_has_are_left_out_and_nothing_else(old):
    found, judged = old
    name = "bert.embeddings.word_embeddings.weight"
    rows = len(found[name])
    more = Correspondence.of_ids(rows, rows + 3, rows, range(rows, rows + 3))
    grown = {**found, name: torch.cat([found[name], torch.ones(3, found[name].shape[1])])}
    assert judged.compare(grown, more).parameter == ""
    assert judged.compare(grown).parameter == name, "without a correspondence it is another shape"
    grown[name] = grown[name].flip(0)
    assert judged.compare(grown, more).parameter == name


def swap_rows(values):
    values[[0, 1]] = values[[1, 0]]


def nudge_one_value(values):
    values[-1, -1] += 0.01


@pytest.mark.parametrize("change", [swap_rows, nudge_one_value])
@pytest.mark.parametrize(
    "tensor", ["intermediate.dense.weight", "attention.self.key.weight", "predictions.decoder.weight"]
)
def test_a_changed_weight_is_seen_in_the_gradients(source, tmp_path, change, tensor):
    target = tmp_path / "changed"
    shutil.copytree(source, target)
    header = read_header(target / "model.safetensors").tensors
    stored = "bert.embeddings.word_embeddings.weight" if "decoder" in tensor else f"bert.encoder.layer.1.{tensor}"
    values = np.memmap(header[stored].path, np.float32, "r+", header[stored].offset, header[stored].shape)
    change(values)
    values.flush()
    found = compare_first_step(Subject(source, target))
    assert "the gradient of the old parameter" in found.failures[0]


def test_a_changed_activation_is_seen_in_the_gradients(source, tmp_path):
    target = tmp_path / "changed"
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu_new"}))
    found = compare_first_step(Subject(source, target))
    assert "the gradient of the old parameter" in found.failures[0]
    row = next(row for row in found.rows() if row[0] == "old gradients")
    assert row[1] == "differ"
    assert "the source's own noise there" in row[2]
