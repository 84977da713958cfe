"""The first step of training: dead parameters are named, old gradients compared, the forecast is the real step's."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from support.families import ROWS, build

import graftkit
from graftkit.architecture.correspondence import Correspondence
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.running.probes import Probe
from graftkit.verification.first_step import compare_first_step
from graftkit.verification.first_step.forecast import direction, jacobian_vector
from graftkit.verification.first_step.reach import first_moves
from graftkit.verification.subject import Subject

CHANGE = Correspondence.of_ids(ROWS, ROWS + 2, ROWS, (ROWS, ROWS + 1))
EPS = torch.finfo(torch.float32).eps
BATCH = Probe("batch", torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.int64))


@pytest.fixture(scope="module", params=["llama", "bert"])
def pair(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    source = build(request.param, place / "source", tokens=ROWS)
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>", "<|b|>"]}
    recipe = {"version": 1, "base_model": str(source), "operations": [operation], "output": str(place / "result")}
    report = graftkit.apply({**recipe, "verify": {"first_step": True}})
    return source, place / "result", next(check for check in report.checks if check.name == "first_step")


def test_new_rows_are_alive_and_old_gradients_equal(pair):
    found = pair[2]
    assert found.failures == ()
    assert not found.gradients.differs
    assert len(found.gradients.noise) == 4
    assert len(found.moves) >= 2
    assert set(found.moves.values()) == {0}


def test_the_forecast_is_the_step_at_small_learning_rates(pair):
    found = pair[2]
    assert found.ceiling >= 1e-5
    assert all(
        figure.error < 0.02
        for figure in found.steps
        if figure.learning_rate <= 1e-5 and figure.measured > 100 * figure.floor
    )
    kls = [figure.forecast for figure in found.steps]
    assert kls == sorted(kls)
    last = found.steps[-1].learning_rate
    for ceiling, tried in ((last, True), (found.steps[0].learning_rate, False)):
        check, _, text = list(replace(found, ceiling=ceiling).rows())[-1]
        assert (check, text.endswith("the largest that was tried")) == ("recommended ceiling", tried)


def test_a_changed_old_weight_shows_in_the_gradients(pair, tmp_path):
    source, result, _ = pair
    target = tmp_path / "changed"
    shutil.copytree(result, target)
    header = read_header(target / "model.safetensors").tensors
    tensor = next(value for name, value in header.items() if "layer" in name and len(value.shape) == 2)
    values = np.memmap(tensor.path, np.float32, "r+", tensor.offset, tensor.shape)
    values[0] *= 1.1
    values.flush()
    found = compare_first_step(Subject(source, target, correspondence=CHANGE))
    assert "the gradient of the old parameter" in found.failures[0]


class Adapted(torch.nn.Module):
    """Embedding, a linear with a LoRA, a head; each factor zero or not."""

    def __init__(self, *, zero_a=False, zero_b=True, zero_head=False):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(12, 8)
        self.weight = torch.nn.Parameter(torch.randn(8, 8))
        self.a = torch.nn.Parameter(torch.randn(2, 8) * (not zero_a))
        self.b = torch.nn.Parameter(torch.randn(8, 2) * (not zero_b))
        self.head = torch.nn.Parameter(torch.randn(3, 8) * (not zero_head))

    def forward(self, input_ids):
        hidden = self.table(input_ids)
        hidden = hidden @ (self.weight + self.b @ self.a).T
        return {"logits": hidden.tanh()[:, -1] @ self.head.T}

    def can_generate(self):
        return False


@pytest.mark.parametrize(
    ("zeros", "moves"),
    [
        ({}, {"b": 0, "a": 1}),
        ({"zero_head": True}, {"head": 0, "b": 1, "a": 2}),
        ({"zero_a": True}, {"a": None, "b": None}),
    ],
)
def test_zero_factors_move_one_after_the_other_unless_they_wait_for_each_other(zeros, moves):
    model = Adapted(**zeros)
    kept = {name: value.clone() for name, value in model.named_parameters()}
    assert first_moves(model, BATCH, frozenset(), dict.fromkeys(moves)) == moves
    assert all(value.equal(kept[name]) for name, value in model.named_parameters())


def of(model):
    return lambda parameters: torch.func.functional_call(model, dict(parameters), (BATCH.ids,))["logits"]


def test_the_step_is_adamw_s_and_zero_b_moves_the_outputs_through_b_alone():
    model = Adapted()
    model(BATCH.ids)["logits"].square().sum().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    along = direction(parameters, gradients)
    assert not jacobian_vector(of(model), parameters, {"a": along["a"]}).any()
    assert jacobian_vector(of(model), parameters, {"b": along["b"]}).any()
    torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01).step()
    for name, value in model.named_parameters():
        assert torch.allclose(
            value,
            parameters[name] + 1e-3 * along[name],
            rtol=0,
            atol=8 * EPS * max(1, float(value.detach().abs().max())),
        )


class Cube(torch.autograd.Function):
    """An operator without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def test_two_backward_passes_stand_in_where_an_operator_lacks_forward_mode():
    at, along = {"x": torch.randn(5)}, {"x": torch.randn(5)}
    found = jacobian_vector(lambda values: Cube.apply(values["x"]), at, along)
    assert torch.allclose(found, 3 * at["x"] ** 2 * along["x"])


def test_a_question_answering_head_has_a_loss_over_places():
    from graftkit.running.loss import loss_of
    from graftkit.verification.first_step.task import gradients

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertForQuestionAnswering(config).eval()
    ids = torch.arange(5, 29).view(2, 12)
    loss = loss_of(model, Probe("texts", ids, torch.ones_like(ids)), frozenset())
    with torch.no_grad():
        outputs = model(input_ids=ids)
    wanted = -torch.stack([
        logits.log_softmax(-1)[row, 2 * side + row]
        for side, logits in enumerate((outputs.start_logits, outputs.end_logits))
        for row in range(2)
    ]).mean()  # fmt: skip
    assert loss.item() == pytest.approx(wanted.item(), abs=16 * EPS * abs(wanted.item()))
    assert gradients(model, loss)["qa_outputs.weight"].abs().sum() > 0
