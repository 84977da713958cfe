"""One thread of torch for each thread of the writer."""

from __future__ import annotations

import contextlib
import threading
from typing import ClassVar


class OneThread(contextlib.AbstractContextManager[None]):
    """torch computes in the calling thread alone, and as before afterwards; for other threads nothing changes.

    Tensors are computed side by side, one in each thread of the writer, in short steps: a team of threads for each step
    of each tensor would mostly wait for one another.

    ``torch.set_num_threads`` sets the number of the calling thread, and that with which threads begin that have not computed yet. The
    latter is set back at once: what such a thread decomposes would depend on who else is in here.
    """

    lock: ClassVar[threading.Lock] = threading.Lock()

    def __enter__(self) -> None:
        import torch

        with self.lock:  # also to begin: the number of beginners is another one for a moment
            self._before = torch.get_num_threads()
            if self._before > 1:
                torch.set_num_threads(1)
                beginner = threading.Thread(target=torch.set_num_threads, args=(self._before,))
                beginner.start()
                beginner.join()

    def __exit__(self, *_: object) -> None:
        import torch

        if self._before > 1:
            torch.set_num_threads(self._before)


def begin_thread() -> None:
    """Let this thread compute with as many threads as the one that began it.

    torch hands its number over when a thread asks for it or runs a loop of its own; a decomposition of the linear algebra library does
    neither, and would round by the number of the environment.
    """
    import torch

    with OneThread.lock:
        torch.get_num_threads()
