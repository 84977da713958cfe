"""A model on the batch that it would be trained on, and what the first step of that does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graftkit.running.forward import run
from graftkit.running.inputs import find_inputs
from graftkit.running.loss import Columns, Observed, loss_of, name_of_loss, observe, old_columns
from graftkit.running.place import Place
from graftkit.running.reference import plan_probes
from graftkit.verification.first_step.forecast import StepFigure, ceiling, direction, forecast, old_outputs
from graftkit.verification.first_step.reach import New, first_moves
from graftkit.verification.first_step.report import FirstStepReport
from graftkit.verification.first_step.task import MOST_IDS, TEXTS, gradients, with_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from graftkit.architecture.correspondence import Correspondence
    from graftkit.running.probes import Probe
    from graftkit.verification.first_step.noise import GradientGap


@dataclass(frozen=True, slots=True)
class Training:
    """``model`` on ``texts`` of old ids, and on ``task``, the same texts with the ``fresh`` ids in them.

    It is fed what ``extra_inputs`` names beside ids. ``seen`` is the output that is looked at, over the columns ``ids``;
    ``left_out`` counts new ids that the task has no room for.
    """

    model: PreTrainedModel
    texts: Probe
    task: Probe
    extra_inputs: frozenset[str]
    seen: Observed
    ids: Columns
    fresh: tuple[int, ...]
    left_out: int

    @classmethod
    def of(cls, model: PreTrainedModel, texts: Probe, old: Sequence[int] | None, new: tuple[int, ...] = ()) -> Training:
        """Run the model once, to find out what it must be fed and what it gives; ``old`` and ``new`` are ids of its own."""
        extra_inputs, outputs = find_inputs(model, lambda tried: run(model, texts, tried))
        seen, fresh = observe(outputs, texts), new[:MOST_IDS]
        left_out = len(new) - len(fresh)
        ids = old_columns(seen, old)
        return cls(model, texts, with_ids(texts, fresh), extra_inputs, seen, ids, fresh, left_out)

    @classmethod
    def of_result(cls, model: PreTrainedModel, texts: Probe, correspondence: Correspondence) -> Training:
        """The same of a result, whose ``texts`` are under its own ids."""
        return cls.of(model, texts, correspondence.drawn_in_result, correspondence.fresh_ids)

    def old_gradients(self) -> Mapping[str, Tensor]:
        """Those of the loss on old inputs, of logits over ids that of the old ids alone."""
        return gradients(self.model, loss_of(self.model, self.texts, self.extra_inputs, self.ids))

    def moves(self, new: Mapping[str, New]) -> dict[str, int | None]:
        """When each ``new`` parameter first moves; see :func:`first_moves`."""
        return first_moves(self.model, self.task, self.extra_inputs, new)

    def forecast(self) -> tuple[StepFigure, ...]:
        """What a step on the task does to the old outputs, by learning rate."""
        parameters = {name: value.detach() for name, value in self.model.named_parameters()}
        along = direction(parameters, gradients(self.model, loss_of(self.model, self.task, self.extra_inputs)))
        run_with = old_outputs(self.model, self.texts, self.extra_inputs, self.seen, self.ids)
        return tuple(forecast(run_with, parameters, along, distributions=self.seen.distributions))

    def report(
        self, gap: GradientGap | None, left_out: str, moves: Mapping[str, int | None], steps: tuple[StepFigure, ...],
        no_forecast: str, seconds: Mapping[str, float], failures: tuple[str, ...], not_run: tuple[str, ...] = (),
    ) -> FirstStepReport:  # fmt: skip
        """The report; ``left_out`` says why there are no gradients, ``no_forecast`` why there are no steps."""
        return FirstStepReport(
            gap, left_out, moves, self.left_out, steps, ceiling(steps), no_forecast, seconds, failures, not_run,
            name_of_loss(self.seen, generates=self.model.can_generate()), self.seen.name, self.seen.distributions,
        )  # fmt: skip


def first_texts(model: PreTrainedModel, place: Place, drawn: Sequence[int] | None, seed: int) -> Probe:
    """The texts of the batch."""
    probes, *_ = plan_probes(model, place, drawn, seed, None)
    return replace(probes[0], ids=probes[0].ids[:TEXTS], mask=probes[0].mask[:TEXTS])
