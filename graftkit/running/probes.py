"""The inputs that both models run on: texts, random ids, every old id, both paddings, long positions, cached decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.checkpoint.documents import read_document
from graftkit.checkpoint.tokenizer.bounds import tokenizers_faults
from graftkit.checkpoint.tokenizer.files import backend_of
from graftkit.checkpoint.tokenizer.vocabulary import object_of
from graftkit.running.probe_texts import PROBE_TEXTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from graftkit.architecture.correspondence import Correspondence

#: Floating point operations that one pass over all probes may cost: some seconds on two cores.
OPERATIONS = 7e11

#: Bytes of outputs that are kept of the source while the result runs.
KEPT_BYTES = 256 << 20

#: Bytes of logits that one forward may make, widened to float32.
LOGIT_BYTES = 128 << 20

#: Tokens in one forward, but where a single sequence is longer.
FORWARD_TOKENS = 1_024

#: Beside the probe of every old id, never more tokens than this: more of the same finds nothing new.
MOST_TOKENS = 3_000

#: Below this budget each forward is dear, since it reads every weight: both paddings share one batch.
COMPACT = 256

#: Images in a batch, at most and at least.
MOST_IMAGES, FEWEST_IMAGES = 8, 2

#: Positions taken where the config names no largest one.
POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Probe:
    """One batch. *Shapes:* ``ids`` and ``mask`` int64 ``(batch, length)``; a mask of 0 is padding.

    ``steps`` ids at the end are fed one at a time with the cache. ``hidden_only`` leaves the logits out. Of a model that is fed
    nothing but images, the one id of a row is the number of its image. ``unit`` is what an id stands for.
    """

    name: str
    ids: Tensor
    mask: Tensor
    steps: int = 0
    hidden_only: bool = False
    unit: str = "tokens"

    @property
    def tokens(self) -> int:
        """Unmasked tokens."""
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class Budget:
    """How many tokens a model may be probed with: in time, with all outputs kept, and with hidden states kept."""

    tokens: int
    kept: int
    hidden: int
    forward: int

    @classmethod
    def of(cls, parameters: int, rows: int, hidden_bytes: int, item_bytes: int, tokens: int | None = None) -> Budget:
        """Scale with the model: ``rows`` of its table, ``hidden_bytes`` of hidden states of all layers for one token."""
        timed = tokens or max(int(OPERATIONS / (2 * parameters)), 64)
        kept = max(KEPT_BYTES // (rows * item_bytes + hidden_bytes), 32)
        forward = min(max(LOGIT_BYTES // (4 * rows), 128), FORWARD_TOKENS)
        return cls(timed, kept, KEPT_BYTES // hidden_bytes, forward)


def make_probes(
    directory: Path, drawn: Sequence[int], positions: int, budget: Budget, seed: int, pad: int
) -> list[Probe]:
    """Deterministic probes over the ids ``drawn``, within ``budget``; the first is a batch of texts where there are any."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tokens = min(budget.tokens, budget.kept, MOST_TOKENS)
    old = torch.tensor(drawn)
    texts = encoded_texts(directory, drawn) or _drawn(old, (8, 48), generator).tolist()
    if tokens < COMPACT:
        return _compact(texts, old, positions, tokens, generator, pad)
    width = max(min(positions, tokens // 40, 64), 4)
    longest = _drawn(old, (1, max(min(positions, tokens // 4), 4)), generator)
    cut = [text[:width] for text in texts]
    probes = [
        _batch("texts, right padding", [(text, False) for text in cut], pad),
        _batch("texts, left padding", [(text, True) for text in cut[1::2]], pad),
        _batch("one text alone", [(texts[0][:width], False)], pad),
        replace(_batch("cached decoding", [(texts[0][: min(width, 24)], False)], pad), steps=4),
        _full("random ids to the longest position", longest),
    ]
    return [*probes, *_every_id(old, positions, budget, sum(probe.ids.numel() for probe in probes), generator)]


def _drawn(old: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Ids drawn from ``old``, with replacement."""
    import torch

    return old[torch.randint(len(old), shape, generator=generator)]


def make_image_probes(count: int) -> list[Probe]:
    """Probes of a model that takes images alone: ``count`` of them as a batch, and one by itself."""
    import torch

    numbers = torch.arange(count).view(-1, 1)
    found = (_full("images", numbers), _full("one image alone", numbers[:1]))
    return [replace(probe, unit="images") for probe in found]


def _compact(
    texts: list[list[int]], old: Tensor, positions: int, tokens: int, generator: torch.Generator, pad: int
) -> list[Probe]:
    """Three forwards of a big model: texts and random ids with both paddings, cached decoding, and one longer row."""
    import torch

    width = max(min(positions, tokens // 8), 4)
    rows = [(text[: width - index % 3], index % 2 == 1) for index, text in enumerate(texts[:6])]
    others = old[torch.randperm(len(old), generator=generator)[: 2 * width]].tolist()
    batch = _batch(
        "texts and random ids, both paddings", [*rows, (others[:width], False), (others[-width:], False)], pad
    )
    cached = _batch("cached decoding", [(texts[0][: min(width, 12)], False)], pad)
    longest = _drawn(old, (1, max(min(positions, tokens // 4), 4)), generator)
    return [batch, replace(cached, steps=2), _full("random ids to the longest position", longest)]


def _every_id(old: Tensor, positions: int, budget: Budget, spent: int, generator: torch.Generator) -> Iterator[Probe]:
    """Every old id once, with hidden states alone where the logits would not fit; else a sample, without replacement."""
    import torch

    room = max(budget.kept - spent, 64)
    if len(old) <= min(budget.tokens, budget.hidden // 2):
        order, name = old, "every old id"
    else:
        count = min(room, budget.tokens, MOST_TOKENS)
        order, name = old[torch.randperm(len(old), generator=generator)[:count].sort().values], "a sample of old ids"
    rows = min(positions, 128)
    whole = len(order) // rows * rows
    hidden_only = len(order) > room
    if whole:
        yield replace(_full(name, order[:whole].view(-1, rows)), hidden_only=hidden_only)
    if len(order) > whole:
        yield replace(_full(f"{name}, rest", order[whole:].view(1, -1)), hidden_only=hidden_only)


def covered_ids(probes: list[Probe]) -> int:
    """How many ids stand in at least one unmasked place."""
    import torch

    return len(torch.unique(torch.cat([probe.ids[probe.mask.bool()] for probe in probes])))


def encoded_texts(directory: Path, drawn: Sequence[int]) -> list[list[int]]:
    """Ids of the probe texts as the tokenizer in ``directory`` splits them, those of ``drawn``; empty without one."""
    if not (directory / "tokenizer.json").exists():
        return []
    document = object_of({"tokenizer.json": read_document(directory, "tokenizer.json")}, "tokenizer.json")
    tokenizer = backend_of(document)
    known = drawn if isinstance(drawn, range) else frozenset(drawn)
    with tokenizers_faults():
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encoded = [[i for i in tokenizer.encode(text).ids if i in known] for text in PROBE_TEXTS]
    long = [ids for ids in encoded if len(ids) >= 4]
    return long if len(long) > 1 else []  # a normalizer may leave nothing of texts


def in_result(probe: Probe, correspondence: Correspondence) -> Probe:
    """The probe as the result is fed it: the same tokens under its own ids."""
    ids = correspondence.ids_in_result(probe.ids)
    return probe if ids is probe.ids else replace(probe, ids=ids)


def _batch(name: str, rows: list[tuple[list[int], bool]], pad: int) -> Probe:
    """Rows of ids, each padded on the left where its flag says so, else on the right."""
    import torch

    length = max(len(row) for row, _ in rows)
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for index, (row, left) in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return Probe(name, ids, mask)


def _full(name: str, ids: Tensor) -> Probe:
    import torch

    return Probe(name, ids, torch.ones_like(ids))


def split(probe: Probe, tokens: int) -> Iterator[Probe]:
    """The probe in batches of at most ``tokens`` tokens, so that one forward's memory is bounded."""
    step = max(tokens // probe.ids.shape[1], 1)
    for start in range(0, len(probe.ids), step):
        part = slice(start, start + step)
        name = probe.name if len(probe.ids) <= step else f"{probe.name} [{start}:{start + step}]"
        yield replace(probe, name=name, ids=probe.ids[part], mask=probe.mask[part])
