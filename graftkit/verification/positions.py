"""A model at its new greatest length: the last positions run, each on its own row of the table, and give finite outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftkit.architecture.capabilities import takes
from graftkit.architecture.positions import PositionTable
from graftkit.architecture.skeleton import one_line
from graftkit.errors import printable
from graftkit.running.forward import flatten, load, run, undisturbed
from graftkit.running.inputs import WHOLE_DECODER, feed, find_inputs
from graftkit.running.looked_up import LookedUp
from graftkit.running.paging.room import paged as paged_in
from graftkit.running.place import Place
from graftkit.running.probes import KEPT_BYTES, OPERATIONS, Probe
from graftkit.running.reference import plan_probes
from graftkit.verification.checks import LoadsModels, Report, Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.verification.subject import Subject

#: Tokens of the sequence that stands at the last positions, where a whole one would cost too much.
TAIL = 16


@dataclass(frozen=True, slots=True)
class PositionsReport(Report):
    """How the new greatest ``length`` was run: ``tokens`` of it, all or the last ones.

    ``rows_used`` are the first and the last row that were looked up, by table; ``skipped`` says why nothing was run.
    """

    length: int
    tokens: int
    rows_used: Mapping[str, tuple[int, int]]
    skipped: str
    failures: tuple[str, ...]
    name: str = "positions"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        if self.skipped:
            yield Row(self.name, "not run", self.skipped)
            return
        which = "a sequence" if self.tokens == self.length else f"the last {self.tokens} positions"
        used = "".join(
            f", rows {first:,} to {last:,} of {printable(name)}" for name, (first, last) in self.rows_used.items()
        )
        yield Row(
            self.name,
            "failed" if self.failures else "run",
            f"{which} of {self.length:,} tokens, all outputs finite{used}",
        )


@dataclass(frozen=True, slots=True)
class PositionsCheck(LoadsModels):
    """The result on a sequence of its greatest ``length``, whose ``tables`` have ``more`` rows than they had."""

    length: int
    more: int
    tables: tuple[PositionTable, ...] = field(repr=False)
    name: str = "positions"

    def run(self, subject: Subject) -> PositionsReport:
        """See :func:`run_longest`; tables that a later operation changed in turn are not looked at."""
        changed = subject.changed_later
        tables = [table for table in self.tables if table.disk not in changed]
        return run_longest(subject.result, self.length, self.more, tables, subject.seed, paged=subject.paged)


def run_longest(
    place: Place, length: int, more: int, tables: Sequence[PositionTable], seed: int, *, paged: bool | None = None
) -> PositionsReport:
    """Run a sequence of ``length`` tokens; where that costs too much, a short one at the last positions, if the forward takes them.

    Too much is more operations than the other probes may cost, or a matrix of scores larger than what is kept of them. Of tables that
    are paged in, which rows are looked up is not seen.

    Raises:
        VerificationFailed: it does not load, or needs inputs that cannot be made.
    """
    first = max((table.first for table in tables), default=0)
    from_files = paged_in((place,), KEPT_BYTES, wanted=paged)
    with undisturbed():
        model = load(place, paged=from_files).model
        probe = plan_probes(model, place, None, seed, None)[0][0]
        extra_inputs, _ = find_inputs(model, lambda tried: run(model, probe, tried))
        whole = length * 2 * model.num_parameters() <= OPERATIONS and 4 * length**2 <= KEPT_BYTES
        if not whole and not takes(model.forward, "position_ids"):
            return PositionsReport(
                length, 0, {}, f"{length:,} tokens would take too long, and the forward takes no position_ids", ()
            )
        count = length if whole else min(TAIL, length)
        ids = _ids(model, probe, count)
        named = dict(model.named_parameters(remove_duplicate=False))
        tables = [] if from_files else [table for table in tables if table.memory in named]
        try:
            with LookedUp({table.memory: named[table.memory] for table in tables}) as seen:
                outputs = _outputs(model, ids, extra_inputs, None if whole else length + first)
        except Exception as error:  # noqa: BLE001 - whatever the forward raises is the finding
            return PositionsReport(
                length, count, {}, "", (f"positions: a sequence of {length:,} tokens fails: {one_line(error)}",)
            )
    failures = [*_not_finite(outputs, length), *_wrong_rows(tables, more, count, seen.rows)]
    return PositionsReport(length, count, seen.rows, "", tuple(failures))


def _ids(model: PreTrainedModel, probe: Probe, count: int) -> Tensor:
    """``(1, count)`` ids of texts, none of which pads: some classes count the positions of the others alone."""
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    texts = probe.ids[probe.mask.bool() & (probe.ids != (-1 if pad is None else pad))]
    return texts.repeat(-(-count // len(texts)))[None, :count]


def _outputs(
    model: PreTrainedModel, ids: Tensor, extra_inputs: frozenset[str], end: int | None
) -> Mapping[str, Tensor]:
    """The outputs of ``ids`` from the first position on, or as the last before the position ``end``."""
    import torch

    whole = extra_inputs | {WHOLE_DECODER} if takes(model.forward, "decoder_input_ids") else extra_inputs
    given: dict[str, Any] = feed(model, Probe("longest", ids, torch.ones_like(ids)), whole)
    if end is not None:
        given["position_ids"] = torch.arange(end - ids.shape[1], end)[None]
    with torch.inference_mode():
        return flatten(model(**given))


def _not_finite(outputs: Mapping[str, Tensor], length: int) -> Iterator[str]:
    for name, value in outputs.items():
        if value.isnan().any() or ("hidden" in name and value.isinf().any()):
            yield f"positions: {name} of a sequence of {length:,} tokens is not finite"
            return


def _wrong_rows(
    tables: Sequence[PositionTable], more: int, count: int, seen: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    """Yield a sentence for each table whose last rows are not those of the last positions."""
    for table in tables:
        last = table.rows + more - 1
        wanted = (last - count + 1, last)
        found = seen.get(table.memory)
        if found != wanted:
            where = f"rows {found[0]:,} to {found[1]:,}" if found else "no row"
            yield (
                f"positions: the last {count:,} positions look up {where} of {printable(table.disk)}, planned were rows"
                f" {wanted[0]:,} to {wanted[1]:,}"
            )
