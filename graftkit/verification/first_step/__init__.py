"""The first step of training: old gradients equal, new parameters alive, and what one optimiser step does to old outputs."""

from graftkit.verification.first_step.compare import OTHER_SOURCE, compare_first_step
from graftkit.verification.first_step.forecast import StepFigure
from graftkit.verification.first_step.report import FirstStepReport

__all__ = ["OTHER_SOURCE", "FirstStepReport", "StepFigure", "compare_first_step"]
