"""Ranks in one process: the owners of blocks answer at once, and each message goes through bytes as it does between processes."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

from graftkit.running.forward import undisturbed
from graftkit.running.reference import run_source
from graftkit.running.split.crew import Crew
from graftkit.running.split.owner import BlockOwner
from graftkit.running.split.together import together


class DirectLine:
    """The line of rank 0 among ``count``."""

    rank = 0

    def __init__(self, count):
        self.count = count
        self.owners = {rank: BlockOwner(rank, count) for rank in range(1, count)}
        self._answers = {}

    def send(self, rank, message):
        """An owner has a thread of its own: modes that rank 0 runs under are not seen there, as in a process of its own."""
        with ThreadPoolExecutor(1) as thread:
            self._answers[rank] = thread.submit(self.owners[rank].answer, message).result()

    def wait(self, rank):
        """It has come."""

    def receive(self, rank):
        return self._answers.pop(rank)


def bits(reference):
    """Probe -> output -> dtype, shape and digest of its bytes; and what was skipped."""
    import torch

    def bits_of(value):
        raw = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(raw).hexdigest()

    found = {probe: {name: bits_of(value) for name, value in kept.items()} for probe, kept in reference.kept.items()}
    return {**found, "skipped": reference.skipped, "cached": reference.cached, "inputs": reference.extra_inputs}


def outputs_alone_and_split(directory, count, crew=None):
    """The bits of every output of a model as one process gives them and as ``count`` ranks do, and the crew that ran it."""
    crew = crew or Crew(DirectLine(count))

    def run(crew):
        with undisturbed():
            return run_source(directory, None, 0, None, {}, lambda _: None, crew=crew)

    return bits(run(None)), bits(together(crew, "outputs", run)), crew
