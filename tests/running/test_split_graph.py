"""Gradients through blocks that other ranks run: each is added where one process adds it, and what cannot be had is said."""

import gc

import pytest
import torch
from support.direct_line import DirectLine
from support.tiny import build

from graftkit.running.forward import load, undisturbed
from graftkit.running.inputs import feed
from graftkit.running.probes import Probe
from graftkit.running.split.crew import Crew
from graftkit.running.split.graph import Graph, linked
from graftkit.running.split.interrupts import CannotSplit


def batch():
    ids = torch.randint(4, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    return Probe("random ids", ids, torch.ones_like(ids))


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
            pull = graph.pull
            if elsewhere == "summed":
                pull = lambda gradients, graph=graph: [sum(graph.pull(gradients))]  # noqa: E731
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
    assert all(not owner._lying._held for owner in crew._line.owners.values())


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
