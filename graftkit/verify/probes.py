"""The inputs that both models run on: texts, random ids, every old id, both paddings, long positions, cached decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.verify.probe_texts import PROBE_TEXTS

#: Floating point operations that one pass over all probes may cost: a few seconds on two cores.
OPERATIONS = 3e11

#: Bytes of outputs that are kept of the source while the result runs.
KEPT_BYTES = 256 << 20

#: Never more tokens than this, however small the model is, unless every old id needs them.
MOST_TOKENS = 6_000

#: Positions taken where the config names no largest one.
POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Probe:
    """One batch. *Shapes:* ``ids`` and ``mask`` int64 ``(batch, length)``; a mask of 0 is padding."""

    name: str
    ids: Any
    mask: Any
    cached: bool = False


def token_budget(parameters: int, row_bytes: int) -> int:
    """How many tokens to probe with, for a model of ``parameters`` whose outputs take ``row_bytes`` for each token."""
    return int(max(min(OPERATIONS / (2 * parameters), KEPT_BYTES / max(row_bytes, 1), MOST_TOKENS), 64))


def make_probes(directory: Path, live: int, positions: int, budget: int, seed: int, pad: int) -> list[Probe]:
    """Deterministic probes of about ``budget`` tokens over the ids ``0..live-1``."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    texts = _encoded_texts(directory, live)
    width = max(min(positions, budget // 8), 4)
    probes = []
    if texts:
        chosen = [text[:width] for text in texts]
        count = max(min(len(chosen), budget * 3 // 10 // width), 1)
        probes.append(_padded("texts, right padding", chosen[:count], pad, left=False))
        probes.append(_padded("texts, left padding", chosen[-max(count // 2, 2) :], pad, left=True))
        probes.append(_padded("cached decoding", [chosen[0][: min(width, 24)]], pad, left=False, cached=True))
    length = max(min(positions, budget // 5), 4)
    probes.append(_full("random ids to the longest position", torch.randint(live, (1, length), generator=generator)))
    spent = sum(probe.ids.numel() for probe in probes)
    left = max(budget - spent, 8)
    order = torch.arange(live) if live <= max(left, MOST_TOKENS // 2) and live <= 4 * left else None
    if order is None:
        order = torch.randperm(live, generator=generator)[:left].sort().values
    rows = min(positions, 128)
    name = "every old id" if len(order) == live else "a sample of old ids"
    whole = len(order) // rows * rows
    if whole:
        probes.append(_full(name, order[:whole].view(-1, rows)))
    if len(order) > whole:
        probes.append(_full(f"{name}, rest", order[whole:].view(1, -1)))
    return probes


def covered_ids(probes: list[Probe], live: int) -> int:
    """How many of the old ids stand in at least one unmasked place."""
    import torch

    seen = torch.zeros(live, dtype=torch.bool)
    for probe in probes:
        seen[probe.ids[probe.mask.bool()]] = True
    return int(seen.sum())


def _encoded_texts(directory: Path, live: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.exists():
        return []
    tokenizer = Tokenizer.from_file(str(path))
    encoded = [[i for i in tokenizer.encode(text).ids if i < live] for text in PROBE_TEXTS]
    return [ids for ids in encoded if len(ids) >= 2]


def _padded(name: str, rows: list[list[int]], pad: int, *, left: bool, cached: bool = False) -> Probe:
    import torch

    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return Probe(name, ids, mask, cached)


def _full(name: str, ids: Any) -> Probe:
    import torch

    return Probe(name, ids, torch.ones_like(ids))


def split(probe: Probe, tokens: int) -> Iterator[Probe]:
    """The probe in batches of at most ``tokens`` tokens, so that one forward's memory is bounded."""
    step = max(tokens // probe.ids.shape[1], 1)
    for start in range(0, len(probe.ids), step):
        part = slice(start, start + step)
        name = probe.name if len(probe.ids) <= step else f"{probe.name} [{start}:{start + step}]"
        yield Probe(name, probe.ids[part], probe.mask[part], probe.cached)
