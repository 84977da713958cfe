"""Texts given with a recipe that trims a vocabulary: how they are split now, and what of the next-token probability went.

Over the kept ids the new distribution is the old one conditioned on them, so that KL(new, old) = -log(1 - removed mass).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.skeleton import one_line
from graftkit.checkpoint.examples import read_texts
from graftkit.errors import plural, printable
from graftkit.running.forward import largest_position, load, release, run, undisturbed
from graftkit.running.inputs import find_inputs
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.place import Place, folder_of
from graftkit.running.probes import LOGIT_BYTES, MOST_TOKENS, OPERATIONS, Probe
from graftkit.verification.checks import Report, Row

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.verification.subject import Subject

#: Texts that are split by both tokenizers, and how many at a time.
MOST_TEXTS, WINDOW = 20_000, 512

#: Fewest tokens of a forward, however wide the table is.
FEWEST_TOKENS = 16


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Texts that were left out of a count, read by a tokenizer trimmed by the others: how many are split otherwise, and are unknown."""

    texts: int
    changed: int
    tokens: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Removed:
    """The probability that the source gives to ids that are gone, at ``positions`` of the texts, and the KL in nats that this is."""

    positions: int
    mass_mean: float
    mass_max: float
    kl_mean: float
    kl_max: float


@dataclass(frozen=True, slots=True)
class TrimmedReport(Report):
    """What was found. Of ``texts``, ``changed`` hold a token that is gone and are split otherwise; ``unknown`` tokens were and are.

    ``not_run`` says why no mass was measured.
    """

    texts: int
    changed: int
    unknown: tuple[int, int]
    held_out: HeldOut | None
    removed: Removed | None
    not_run: str
    failures: tuple[str, ...]
    name: str = "trimmed texts"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        figure = f"{self.changed:,} of {plural(self.texts, 'text')} split otherwise, for want of tokens"
        was, now = self.unknown
        figure += f"; {now:,} unknown tokens, {was:,} before" if was or now else ""
        yield Row("given texts", "failed" if self.failures else "passed", figure)
        if held := self.held_out:
            figure = (
                f"{held.changed:,} of {plural(held.texts, 'text')} would be split otherwise, had they not been counted"
            )
            figure += f"; {held.unknown:,} of {held.tokens:,} tokens unknown" if held.unknown else ""
            yield Row("texts held out", "measured", figure)
        if found := self.removed:
            figure = f"mean {found.mass_mean:.3g}, max {found.mass_max:.3g}, over {found.positions:,} positions"
            yield Row("removed mass", "measured", figure)
            yield Row(
                "KL(new, old)", "measured", f"mean {found.kl_mean:.3g}, max {found.kl_max:.3g}: -log(1 - removed mass)"
            )
        elif self.not_run:
            yield Row("removed mass", "not run", self.not_run)


@dataclass(frozen=True, slots=True)
class TrimmedTexts:
    """The texts of ``path`` before and after; ``held_out`` measures those that were left out of a count, None without such."""

    path: Path
    held_out: Callable[[], HeldOut | None]
    name: str = "trimmed texts"

    def applies(self, subject: Subject) -> bool:
        """Where ids are gone."""
        return subject.correspondence.ids is not None

    def run(self, subject: Subject) -> TrimmedReport:
        """Split the texts both ways, and run the source on some of them."""
        ids = subject.correspondence.ids
        if ids is None:
            raise ValueError("no id is gone")
        names = {old: now.content for old, now in subject.tokens.renamed.items()} if subject.tokens else {}
        before = LoadedTokenizer.of(folder_of(subject.source), names, ids)
        after = LoadedTokenizer.of(folder_of(subject.result))
        texts, changed, unknown, wrong = self._split(before, after, frozenset(ids.fresh))
        removed, why = (None, subject.not_run) if subject.not_run else _removed(subject.source, before, self.path, ids)
        failures = (
            [f"texts: {wrong[0]} (and {len(wrong) - 1} more)" if len(wrong) > 1 else f"texts: {wrong[0]}"]
            if wrong
            else []
        )
        return TrimmedReport(texts, changed, unknown, self.held_out(), removed, why, tuple(failures))

    def _split(
        self, before: LoadedTokenizer, after: LoadedTokenizer, new: frozenset[int]
    ) -> tuple[int, int, tuple[int, int], list[str]]:
        count, changed, was, now, wrong = 0, 0, 0, 0, list[str]()
        stream = islice(read_texts(self.path), MOST_TEXTS)
        while window := list(islice(stream, WINDOW)):
            named = [before.text_under_names(text) for text in window]
            for text, other, old, ids in zip(window, named, before.encode(window), after.encode(named), strict=True):
                count += 1
                was, now = was + _count(old, before.unknown), now + _count(ids, after.unknown)
                if old == ids:
                    continue
                if before.loses(old):
                    changed += 1
                elif not new.intersection(ids) and text == other:
                    wrong.append(f"a text of kept tokens alone is split otherwise: {printable(text[:60])!r}")
        return count, changed, (was, now), wrong


def _count(ids: Sequence[int], unknown: int | None) -> int:
    return 0 if unknown is None else ids.count(unknown)


def _removed(source: Place, before: LoadedTokenizer, path: Path, ids: IndexMap) -> tuple[Removed | None, str]:
    """Run the source on texts until its budget is used up; with why, where nothing was measured."""
    import torch

    gone = torch.tensor(ids.dropped)
    with undisturbed():
        model = load(source, lent=True).model
        try:
            budget = min(max(int(OPERATIONS / (2 * model.num_parameters())), FEWEST_TOKENS), MOST_TOKENS)
            length = min(largest_position(model) or budget, max(LOGIT_BYTES // (8 * ids.source), FEWEST_TOKENS))
            masses: list[Tensor] = []
            extra: frozenset[str] | None = None
            for own in _ids_of(before, path, length, budget):
                probe = Probe("text", torch.tensor([own]), torch.ones(1, len(own), dtype=torch.int64))
                if extra is None:
                    extra, outputs = find_inputs(model, lambda tried, probe=probe: run(model, probe, tried))  # type: ignore[misc]
                else:
                    outputs = run(model, probe, extra)
                logits = outputs.get("logits")
                if logits is None or logits.shape[-1] != ids.source:
                    return None, "it has no logits over ids"
                masses.append(logits.double().softmax(-1)[..., gone].sum(-1).flatten())
        except Exception as error:  # noqa: BLE001 - whatever a forward raises is why there is no figure
            return None, one_line(error)
        finally:
            release(model)
    if not masses:
        return None, "the texts hold no token"
    found = torch.cat(masses).clamp(max=1.0)
    kl = -torch.log1p(-found)
    figures = (float(found.mean()), float(found.max()), float(kl.mean()), float(kl.max()))
    return Removed(len(found), *figures), ""


def _ids_of(before: LoadedTokenizer, path: Path, length: int, budget: int) -> Iterator[Sequence[int]]:
    """Yield the first ``length`` ids of texts, as the source has them, ``budget`` in all."""
    left, stream = budget, read_texts(path)
    for text in stream:
        (found,) = before.tokenizer([text], add_special_tokens=True, verbose=False)["input_ids"]
        own = list(found)[: min(length, left)]
        if own:
            yield own
            left -= len(own)
        if left <= 0:
            return
