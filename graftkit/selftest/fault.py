"""What a planted fault is: where it goes, how it is planted, and which checks have to see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

S = TypeVar("S")

#: The checks by their names in a verification; a copy that is refused when it is opened was seen by ``LOADING``.
REPORT, BYTES, CONFIG, TOKENIZER, OUTPUTS = "report", "bytes", "config", "tokenizer", "outputs"
LOADING = "loading"
#: Those of an adapter: its files and its base beside their report, what peft says of it, and the gradients at step 0.
ADAPTER, BASE, PEFT, GRADIENTS = "adapter", "base", "peft", "gradients"


@dataclass(frozen=True, slots=True)
class Fault(Generic[S]):
    """One fault in a subject: a model, or an adapter on it.

    Attributes:
        name: what it is called in the report.
        at: returns where it goes in this model; raises NotApplicable where it cannot exist.
        plant: changes the copy in a directory, at that place.
        seen_by: the checks each of which has to see it; ``LOADING`` outdoes them, since nothing runs after it.
    """

    name: str
    at: Callable[[S], str]
    plant: Callable[[Path, S, str], None]
    seen_by: tuple[str, ...]
