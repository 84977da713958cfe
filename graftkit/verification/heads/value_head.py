"""The check of a written value head: read as LLaMA-Factory reads it, put on the reloaded model as TRL does, and run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from graftkit.architecture.skeleton import one_line
from graftkit.checkpoint.value_head import BIAS, FILE, WEIGHT, value_head_faults
from graftkit.errors import plural
from graftkit.running.forward import load, undisturbed
from graftkit.running.place import Place, folder_of, open_place
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.running.texts import known_inputs, load_tokenizer, longest
from graftkit.verification.checks import LoadsModels, Report, Row
from graftkit.verification.subject import Subject

#: Texts that the head is run on, and tokens of each.
TEXTS, LENGTH = PROBE_TEXTS[:8], 48


@dataclass(frozen=True, slots=True)
class ValueHeadReport(Report):
    """What was found: ``faults`` of the file, and the values of ``tokens`` tokens, the largest and their root mean square.

    ``zero`` says that all values are to be zero; ``skipped`` says why nothing was run.
    """

    width: int
    zero: bool
    faults: tuple[str, ...] = ()
    tokens: int = 0
    largest: float = 0.0
    rms: float = 0.0
    skipped: str = ""
    name: str = "value_head"
    derived: ClassVar[tuple[str, ...]] = ("failures",)

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for each promise that is not kept."""
        return tuple(self._failures())

    def _failures(self) -> Iterator[str]:
        for fault in self.faults:
            yield f"value head: {FILE} {fault}"
        if not math.isfinite(self.largest):
            yield "value head: a value is not finite"
        elif self.zero and self.largest:
            yield f"value head: zeros were asked for, and a value is {self.largest:.3g}"

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        if self.skipped:
            yield Row("value head", "not run", self.skipped)
            return
        result = "failed" if self.failures else "zero" if self.zero else "finite"
        yield Row(
            "value head",
            result,
            f"values of {plural(self.tokens, 'token')}, {self.rms:.3g} rms, {self.largest:.3g} at most",
        )


@dataclass(frozen=True, slots=True)
class ValueHeadCheck(LoadsModels):
    """The written value head on hidden states of a ``width``; ``zero`` says that it begins with zeros."""

    width: int
    zero: bool
    name: str = "value_head"

    def run(self, subject: Subject) -> ValueHeadReport:
        """See :func:`check_value_head`."""
        return check_value_head(subject.result, self.width, zero=self.zero)


def check_value_head(result: Place, width: int, *, zero: bool) -> ValueHeadReport:
    """Read the value head of ``result``, and run it on the last hidden states of its reloaded model.

    Raises:
        VerificationFailed: the model does not load.
    """
    faults = tuple(value_head_faults(open_place(result).value_head, width))
    if faults:
        return ValueHeadReport(width, zero, faults)
    import torch
    from safetensors.torch import load_file

    head = torch.nn.Linear(width, 1)
    stored = load_file(folder_of(result) / FILE)
    head.load_state_dict({"weight": stored[WEIGHT], "bias": stored[BIAS]})
    with undisturbed():
        model = load(result).model
        try:
            tokenizer = load_tokenizer(folder_of(result))
            length = min(LENGTH, longest(model, tokenizer, None))
            with torch.inference_mode():
                encoded = [tokenizer(text, truncation=True, max_length=length, return_tensors="pt") for text in TEXTS]
                outputs = [model(**known_inputs(model, one), output_hidden_states=True) for one in encoded]
                values = torch.cat([head(found.hidden_states[-1].float()).flatten() for found in outputs])
        except Exception as error:  # noqa: BLE001 - inputs that cannot be made show in any way
            return ValueHeadReport(width, zero, skipped=one_line(error))
    largest = float(values.abs().max()) if bool(values.isfinite().all()) else math.inf
    return ValueHeadReport(width, zero, (), len(values), largest, float(values.square().mean().sqrt()))
