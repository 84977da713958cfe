"""What the tests of the lens share: families in bfloat16, probes over them, one unit in the last place."""

import torch

from graftkit.running.forward import load, run, undisturbed
from graftkit.running.inputs import find_inputs
from graftkit.running.probes import Probe


def probe(rows=3, length=12, seed=0):
    ids = torch.randint(4, 300, (rows, length), generator=torch.Generator().manual_seed(seed))
    return Probe("random ids", ids, torch.ones_like(ids))


def opened(directory):
    """The model of a checkpoint, and what it must be fed beside ids."""
    with undisturbed():
        model = load(directory).model
        extra_inputs, _ = find_inputs(model, lambda tried: run(model, probe(), tried))
    return model, extra_inputs


def flip(tensor, *place):
    """Move one bfloat16 value to its neighbour, away from zero."""
    tensor.data.view(torch.int16)[place] += 1
