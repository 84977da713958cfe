"""What was found of the first step of training, as a check's report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.errors import few
from graftkit.verification.first_step.forecast import TOLERANCE, StepFigure

#: What the parts of an adapter's names say of what they are.
KINDS = ("lora_", "trainable_tokens_delta", "modules_to_save")


@dataclass(frozen=True, slots=True)
class FirstStepReport:
    """Gradients, reach and forecast, in float32 on copies of the models.

    Attributes:
        gradient_error: the largest ‖g_new - g_old‖/‖g_old‖ over old parameters, of the loss over the old ids alone.
        gradient_at: the parameter with that error; ``gradients_left_out`` says why none was compared.
        moves: new parameter -> the step at which it first has a gradient, None where it is dead.
        left_out: new ids that the batch had no room for.
        not_run: parameters of an adapter on modules that the batch does not run.
        steps: forecast and measured KL over the old domain by learning rate; ``no_forecast`` says why there is none.
        ceiling: the largest learning rate of ``steps`` up to which the forecast holds.
    """

    gradient_error: float | None
    gradient_at: str
    gradients_left_out: str
    moves: Mapping[str, int | None]
    left_out: int
    steps: tuple[StepFigure, ...]
    ceiling: float | None
    no_forecast: str
    seconds: Mapping[str, float]
    failures: tuple[str, ...]
    not_run: tuple[str, ...] = ()
    name: str = "first_step"

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """``(check, result, figure)`` for a table."""
        if self.gradient_error is None:
            yield "old gradients", "not compared", self.gradients_left_out
        else:
            where = f" at {self.gradient_at}" if self.gradient_at else ""
            yield (
                "old gradients",
                "equal" if not self.failures else "compared",
                f"relative error {self.gradient_error:.2g}{where}",
            )
        dead = [name for name, step in self.moves.items() if step is None]
        if self.moves:
            alive = f"{len(self.moves) - len(dead)} of {len(self.moves)} have a gradient"
            more = f", {self.left_out} not tried" if self.left_out else ""
            yield (
                "new parameters",
                "dead" if dead else "alive",
                f"{alive}, {', '.join(_when(self.moves))}{more}",
            )
        if self.not_run:
            yield "new parameters", "not run by the batch", few(self.not_run)
        if not self.steps:
            yield "first optimiser step", "not forecast", self.no_forecast
            return
        for figure in self.steps:
            text = f"KL {figure.measured:.3g}, forecast {figure.forecast:.3g} ({figure.error:.1%} off)"
            yield f"first step at lr {figure.learning_rate:g}", "measured", text
        advice = "no learning rate tried" if self.ceiling is None else f"lr {self.ceiling:g}"
        beyond = ", the largest that was tried" if self.ceiling == self.steps[-1].learning_rate else ""
        yield "recommended ceiling", advice, f"the forecast is within {TOLERANCE:.0%} up to there{beyond}"

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        steps = [{**dataclasses.asdict(figure), "error": figure.error} for figure in self.steps]
        return {**dataclasses.asdict(self), "steps": steps}


def _when(moves: Mapping[str, int | None]) -> Iterator[str]:
    """Yield for each step what moves first in it, by kind where it is an adapter's."""
    for step in sorted({step for step in moves.values() if step is not None}):
        names = (name for name, first in moves.items() if first == step)
        kinds = {next((part for part in name.split(".") if part.startswith(KINDS)), "") for name in names}
        yield f"{' and '.join(sorted(kinds)) or 'first'} at step {step}" if "" not in kinds else f"first at step {step}"
