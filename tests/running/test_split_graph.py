"""Gradients through blocks that other ranks run: each is added where one process adds it, and what cannot be had is said."""

import copy
import gc

import pytest
import torch
from support.batches import batch
from support.direct_line import DirectLine
from support.tiny import build

from graftkit.running.forward import load, undisturbed
from graftkit.running.inputs import feed
from graftkit.running.loss import Observed, loss_of
from graftkit.running.split.crew import Crew
from graftkit.running.split.graph import Graph, linked
from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.parts import refuse_to_train
from graftkit.verification.first_step.forecast import jacobian_vector, old_outputs
from graftkit.verification.first_step.task import differentiable, gradients


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    place = tmp_path_factory.mktemp("graph") / "llama"
    build("LlamaForCausalLM", place, config_overrides={"num_hidden_layers": 4})
    return place


def gradient_of_embeddings(model, **options):
    """The gradient of the summed logits, squared, by what the embeddings give."""
    seen = []

    def leaf(_, __, output):
        seen.append(output.detach().requires_grad_())
        return seen[0].clone()

    hook = model.get_input_embeddings().register_forward_hook(leaf)
    for parameter in model.parameters():
        parameter.requires_grad_(requires_grad=False)
    with torch.enable_grad():
        logits = model(**feed(model, batch(), frozenset()), use_cache=False)["logits"]
        hook.remove()
        return torch.autograd.grad(logits.square().sum(), seen, **options)[0]


def uses_of(x):
    return (1e8 * x).sum() - (1e8 * x).sum()


def test_gradients_are_added_in_the_order_of_one_process():
    """Their sum comes out otherwise where those of one block are added up before they meet those of another."""
    found = []
    for elsewhere in ("", "each", "summed"):
        x = torch.ones(1, requires_grad=True)
        stream = x.clone()
        if elsewhere:
            leaf = stream.detach().requires_grad_()
            graph = Graph([leaf], [uses_of(leaf)])
            pull = lambda gradients, graph=graph: graph.pull(gradients)[0]  # noqa: E731
            if elsewhere == "summed":
                pull = lambda gradients, graph=graph: [sum(graph.pull(gradients)[0])]  # noqa: E731
            uses = graph.uses[0] if elsewhere == "each" else 1
            (inside,) = linked([graph._gave[0].detach()], [stream] * uses, pull)
        else:
            inside = uses_of(stream)
        (stream.sum() + inside).backward()
        found.append(x.grad.item())
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_gradients_of_one_process_and_no_graph_is_kept(llama):
    crew = Crew(DirectLine(3))
    with undisturbed():
        whole, split = (gradient_of_embeddings(model) for model in (load(llama).model, crew.load(llama).model))
    assert whole.equal(split)
    assert whole.any()
    gc.collect()
    crew.figures()
    assert all(not owner._held._held for owner in crew._line.owners.values())


def to_be_trained(place, crew=None):
    if crew is not None:
        return crew.load(place, trained=True).model
    return load(place).model.float()


def held(crew, tensor):
    """The tensor itself, wherever it lies."""
    return crew.fetch(tensor) if hasattr(tensor, "location") else tensor


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_gradients_of_parameters_stay_and_are_those_of_one_process(name, tmp_path):
    build(name, tmp_path, dtype="bfloat16")
    crew = Crew(DirectLine(3))
    with undisturbed():
        models = to_be_trained(tmp_path), to_be_trained(tmp_path, crew)
        whole, split = (gradients(model, loss_of(model, batch(), frozenset())) for model in models)
    assert list(whole) == list(split)
    assert sum(hasattr(gradient, "location") for gradient in split.values()) > 5
    assert all(gradient.equal(held(crew, split[name])) for name, gradient in whole.items())


def test_a_copy_is_trained_and_the_model_stays(llama):
    crew = Crew(DirectLine(2))
    with undisturbed():
        model = to_be_trained(llama, crew)
        before = {name: held(crew, value).detach().clone() for name, value in model.named_parameters()}
        loss = loss_of(model, batch(), frozenset())
        trained, losses = copy.deepcopy(model), [loss.item()]
        optimiser = torch.optim.AdamW(trained.parameters(), 1e-2)
        for _ in range(2):
            found = gradients(trained, loss_of(trained, batch(), frozenset()))
            for name, parameter in trained.named_parameters():
                parameter.grad = found[name]
            optimiser.step()
            losses.append(loss_of(trained, batch(), frozenset()).item())
        assert losses == sorted(losses, reverse=True)
        assert loss_of(model, batch(), frozenset()).item() == losses[0]
        assert all(held(crew, value).equal(before[name]) for name, value in model.named_parameters())
        moved = dict(trained.named_parameters())["model.layers.3.mlp.up_proj.weight"]
        assert not held(crew, moved).equal(before["model.layers.3.mlp.up_proj.weight"])


def test_forward_derivatives_of_one_process(llama):
    crew, found = Crew(DirectLine(3)), []
    with undisturbed(), differentiable():
        for model in (to_be_trained(llama), to_be_trained(llama, crew)):
            at = {name: value.detach() for name, value in model.named_parameters()}
            run = old_outputs(model, batch(), frozenset(), Observed("ids", "logits"), None)
            found.append(jacobian_vector(run, at, {name: value * 0.5 for name, value in at.items()}))
    assert found[0].any()
    assert found[0].equal(found[1])


def test_a_parameter_of_several_ranks_is_trained_by_one_process(tmp_path):
    build("LlamaForCausalLM", tmp_path, config_overrides={"num_hidden_layers": 4})
    model = load(tmp_path).model
    owners = {f"model.layers.{number}": number // 2 for number in range(4)}
    refuse_to_train(model, owners, paged=False)
    model.model.layers[3].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(CannotSplit, match="modules of several ranks"):
        refuse_to_train(model, owners, paged=False)


def test_derivatives_of_gradients_are_for_one_process(llama):
    with undisturbed(), pytest.raises(CannotSplit, match="derivatives of gradients"):
        gradient_of_embeddings(Crew(DirectLine(2)).load(llama).model, create_graph=True)


def test_a_block_that_writes_into_what_it_is_given_is_differentiated_by_one_process(llama, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    before = LlamaDecoderLayer.forward

    def forward(self, hidden_states, *args, **kwargs):
        hidden_states.mul_(1.5)
        return before(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    with undisturbed(), pytest.raises(CannotSplit, match="cannot be differentiated by another rank"):
        gradient_of_embeddings(Crew(DirectLine(2)).load(llama).model)


def test_a_line_that_breaks_in_a_backward_leaves_it_at_once(llama):
    """The engine of torch does not take it for a fault of the model."""
    from graftkit.errors import StorageFault
    from graftkit.running.split.interrupts import LineBroken
    from graftkit.running.split.owner import PULL

    crew = Crew(DirectLine(2))
    send = crew._line.send

    def breaking(rank, message):
        if PULL.encode() in message[:2000]:
            raise StorageFault("the other ranks do not answer any more")
        send(rank, message)

    crew._line.send = breaking
    with undisturbed(), pytest.raises(LineBroken, match="do not answer"):
        gradient_of_embeddings(crew.load(llama).model)
