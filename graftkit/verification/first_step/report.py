"""What was found of the first step of training, as a check's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graftkit.errors import few
from graftkit.verification.checks import Report, Row
from graftkit.verification.first_step.forecast import TOLERANCE, StepFigure
from graftkit.verification.first_step.noise import GradientGap

#: What the parts of an adapter's names say of what they are.
KINDS = ("lora_", "trainable_tokens_delta", "modules_to_save")


@dataclass(frozen=True, slots=True)
class FirstStepReport(Report):
    """Gradients, reach and forecast, in float32 on copies of the models.

    Attributes:
        gradients: the old parameter whose gradient stands farthest above the source's own noise; ``gradients_left_out``
            says why none was compared.
        moves: new parameter -> the step at which it first has a gradient, None where it is dead.
        left_out: new ids that the batch had no room for.
        steps: forecast and measured change over the old domain by learning rate; ``no_forecast`` says why there is none.
        ceiling: the largest learning rate of ``steps`` up to which the forecast holds.
        not_run: parameters of an adapter on modules that the batch does not run.
        loss: what was differentiated, in words.
        observed: the output that ``steps`` are about: logits as ``distributions``, whose change is a KL, or plain values.
    """

    gradients: GradientGap | None
    gradients_left_out: str
    moves: Mapping[str, int | None]
    left_out: int
    steps: tuple[StepFigure, ...]
    ceiling: float | None
    no_forecast: str
    seconds: Mapping[str, float]
    failures: tuple[str, ...]
    not_run: tuple[str, ...] = ()
    loss: str = ""
    observed: str = ""
    distributions: bool = True
    name: str = "first_step"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        yield Row("first step", "taken", f"in float32, by the {self.loss}")
        yield self._gradients_row()
        dead = [name for name, step in self.moves.items() if step is None]
        if self.moves:
            alive = f"{len(self.moves) - len(dead)} of {len(self.moves)} have a gradient"
            more = f", {self.left_out} not tried" if self.left_out else ""
            yield Row(
                "new parameters",
                "dead" if dead else "alive",
                f"{alive}, {', '.join(_when(self.moves))}{more}",
            )
        if self.not_run:
            yield Row("new parameters", "not run by the batch", few(self.not_run))
        if not self.steps:
            yield Row("first optimiser step", "not forecast", self.no_forecast)
            return
        change = "KL" if self.distributions else f"relative change of {self.observed}"
        for figure in self.steps:
            text = f"{change} {figure.measured:.3g}, forecast {figure.forecast:.3g} ({figure.error:.1%} off)"
            yield Row(f"first step at lr {figure.learning_rate:g}", "measured", text)
        advice = "no learning rate tried" if self.ceiling is None else f"lr {self.ceiling:g}"
        beyond = ", the largest that was tried" if self.ceiling == self.steps[-1].learning_rate else ""
        yield Row("recommended ceiling", advice, f"the forecast is within {TOLERANCE:.0%} up to there{beyond}")

    def _gradients_row(self) -> Row:
        gap = self.gradients
        if gap is None:
            return Row("old gradients", "not compared", self.gradients_left_out)
        most = max((gap.noise or {}).values(), default=0.0)
        if not gap.parameter:
            return Row("old gradients", "bitwise", f"the source's own noise is up to {most:.2g}")
        text = f"relative error {gap.error:.2g} at {gap.parameter}, the source's own noise there {gap.floor:.2g}"
        return Row("old gradients", "differ" if gap.differs else "equal to the noise", text)


def _when(moves: Mapping[str, int | None]) -> Iterator[str]:
    """Yield for each step what moves first in it, by kind where it is an adapter's."""
    for step in sorted({step for step in moves.values() if step is not None}):
        names = (name for name, first in moves.items() if first == step)
        kinds = {next((part for part in name.split(".") if part.startswith(KINDS)), "") for name in names}
        yield f"{' and '.join(sorted(kinds)) or 'first'} at step {step}" if "" not in kinds else f"first at step {step}"
