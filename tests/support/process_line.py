"""Ranks as processes of their own that answer rank 0 through pipes, several at the same time."""

import multiprocessing

import torch

from graftkit.running.split.owner import BlockOwner


class ProcessLine:
    """The line of rank 0 among ``count``. Use as a context manager, which starts the others."""

    rank = 0

    def __init__(self, count):
        self.count = count
        self._asked = set()

    def __enter__(self):
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._pipes, self._processes = {}, []
        for rank in range(1, self.count):
            self._pipes[rank], theirs = context.Pipe()
            arguments = (rank, self.count, torch.get_num_threads(), theirs)
            self._processes.append(context.Process(target=_own, args=arguments, daemon=True))
            self._processes[-1].start()
            theirs.close()
        return self

    def __exit__(self, *_):
        for pipe, process in zip(self._pipes.values(), self._processes, strict=True):
            pipe.close()
            process.join()

    def renew(self):
        """Let the others begin again, for another crew."""
        for pipe in self._pipes.values():
            pipe.send(None)

    def everywhere(self, function, *arguments):
        """Call a function of a module that can be imported in every other process, and give what it returns there."""
        for pipe in self._pipes.values():
            pipe.send((function, arguments))
        return [pipe.recv() for pipe in self._pipes.values()]

    def send(self, rank, message):
        assert rank not in self._asked, "an owner is asked before its answer was read"
        self._asked.add(rank)
        self._pipes[rank].send(message)

    def wait(self, rank):
        self._pipes[rank].poll(None)

    def receive(self, rank):
        message = self._pipes[rank].recv()
        self._asked.remove(rank)
        return message


def _own(rank, count, threads, pipe):
    torch.set_num_threads(threads)
    owner = BlockOwner(rank, count)
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if message is None:
            owner = BlockOwner(rank, count)
        elif isinstance(message, bytes):
            pipe.send(owner.answer(message))
        else:
            function, arguments = message
            pipe.send(function(*arguments))
