"""Other kernels of this machine: what equal bytes compute is equal under each of them, so that no clean copy is flagged."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def _no_onednn() -> Iterator[None]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it speaks of settings that only other processors have
        with torch.backends.mkldnn.flags(enabled=False):
            yield


#: Name -> a context in which torch takes other kernels than it would by itself.
KERNELS: Mapping[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "one thread": _one_thread,
    "attention by its plain formula": _plain_attention,
    "without oneDNN": _no_onednn,
}
