"""Which rank writes which file: the largest first, each to the rank that has the least."""

from __future__ import annotations

from collections.abc import Mapping


def assign(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """The names of the files of each of ``count`` ranks; ``sizes`` are their bytes.

    Longest processing time first (Graham 1969): the rank with the most has at most 4/3 - 1/(3 count) of what it would have in the best
    assignment. Equal sizes go by name and equal ranks by number, so that every rank finds the same.
    """
    files: list[list[str]] = [[] for _ in range(count)]
    loads = [0] * count
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = min(range(count), key=lambda rank: (loads[rank], rank))
        files[rank].append(name)
        loads[rank] += sizes[name]
    return files
