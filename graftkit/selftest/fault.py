"""What a planted fault is: where it goes, how it is planted, and which checks have to see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graftkit.selftest.subject import Subject

#: The checks by their names in a verification; a copy that is refused when it is opened was seen by ``LOADING``.
BYTES, CONFIG, TOKENIZER, OUTPUTS = "bytes", "config", "tokenizer", "outputs"
LOADING = "loading"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        name: what it is called in the report.
        at: returns where it goes in this model; raises NotApplicable where it cannot exist.
        plant: changes the copy in a directory, at that place.
        seen_by: the checks each of which has to see it; ``LOADING`` outdoes them, since nothing runs after it.
    """

    name: str
    at: Callable[[Subject], str]
    plant: Callable[[Path, Subject, str], None]
    seen_by: tuple[str, ...]
