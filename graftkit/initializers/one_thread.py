"""One thread of torch for each thread of the writer."""

from __future__ import annotations

import contextlib
import threading
from typing import ClassVar


class OneThread(contextlib.AbstractContextManager[None]):
    """torch computes in the calling thread alone, and as before afterwards.

    Tensors are computed side by side, one in each thread of the writer, in short steps: a team of threads for each step
    of each tensor would mostly wait for one another.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _inside: ClassVar[int] = 0
    _before: ClassVar[int] = 1

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if OneThread._inside == 0:  # a fresh thread starts with the number that was set last, in any thread
                OneThread._before = torch.get_num_threads()
            OneThread._inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        import torch

        with self._lock:
            OneThread._inside -= 1
            torch.set_num_threads(OneThread._before)
