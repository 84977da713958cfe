"""Many small jobs in worker processes, each with a limit of its own."""

from __future__ import annotations

import gc
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

#: Takes a name and an empty folder that is removed afterwards; must be importable by name.
Judge = Callable[[str, Path], Any]


def sweep(names: list[str], jobs: int, limit: float, judge: Judge) -> Iterator[tuple[str, Any, str, float]]:
    """Yield of each name what ``judge`` said, or None and why it came to no end; and the seconds.

    A worker that crashes or takes too long is replaced and costs only its name.
    """
    waiting, context = list(reversed(names)), multiprocessing.get_context("spawn")
    busy: dict[Connection, tuple[Any, str, float]] = {}
    idle: list[tuple[Connection, Any]] = []
    while waiting or busy:
        while waiting and len(busy) < jobs:
            pipe, process = idle.pop() if idle else _start(context, judge)
            if _sent(pipe, waiting[-1]):
                busy[pipe] = (process, waiting.pop(), time.monotonic())
        ready = wait(list(busy), timeout=1)
        for pipe in list(busy):
            process, name, since = busy[pipe]
            late = time.monotonic() - since > limit
            if pipe not in ready and not late:
                continue
            del busy[pipe]
            try:
                if pipe not in ready:
                    raise EOFError
                yield name, pipe.recv(), "", time.monotonic() - since
                idle.append((pipe, process))
            except EOFError:
                process.kill()
                process.join()
                why = f"took more than {limit:.0f} s" if late else f"the process died with {process.exitcode}"
                yield name, None, why, time.monotonic() - since
    for pipe, process in idle:
        _sent(pipe, None)
        process.join()


def _sent(pipe: Connection, name: str | None) -> bool:
    """Whether a name reached its worker, which may have died while it waited."""
    try:
        pipe.send(name)
    except OSError:
        return False
    return True


def _start(context: Any, judge: Judge) -> tuple[Connection, Any]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, judge), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _work(pipe: Connection, judge: Judge) -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    while (name := pipe.recv()) is not None:
        gc.freeze()  # the modules of many architectures are many objects, and each verification collects garbage
        place = Path(tempfile.mkdtemp(prefix="sweep-"))
        try:
            pipe.send(judge(name, place))
        finally:
            shutil.rmtree(place, ignore_errors=True)
