"""One source for many comparisons: what it gave is remembered, so that it runs once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

#: What was made last, under what was asked for, while :func:`remembered_source` is in force.
_LAST: ContextVar[dict[Hashable, object] | None] = ContextVar("_LAST", default=None)


@contextlib.contextmanager
def remembered_source() -> Iterator[None]:
    """Let comparisons in the body that ask the same of the same source run it once.

    Nothing in the body may change its files, the kernels or the number of threads. Its outputs stay in memory until the end.
    """
    token = _LAST.set({})
    try:
        yield
    finally:
        _LAST.reset(token)


def recall(key: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` returned for this key the last time, where it is remembered; else what it returns now."""
    last = _LAST.get()
    if last is None:
        return make()
    if key not in last:
        last.clear()  # the outputs of one source are large enough
        last[key] = make()
    found: T = last[key]  # type: ignore[assignment]
    return found
