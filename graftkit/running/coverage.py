"""What the comparison of outputs covered, and what it could not cover of that which applies to a class of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.architecture.embeddings import OUTPUT, embedding_of
from graftkit.running.forward import generates
from graftkit.running.probes import Probe, covered_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN, LOGITS, CACHED, EVERY_ID = "hidden states", "logits", "cached decoding", "every old id"
RIGHT, LEFT, LONG = "right padding", "left padding", "long positions"


@dataclass(frozen=True, slots=True)
class Coverage:
    """``covered`` names what was compared, ``lost`` what applies to the class of model and was not."""

    covered: tuple[str, ...]
    lost: tuple[str, ...]


def applying(model: PreTrainedModel, *, backbone: bool) -> tuple[str, ...]:
    """What applies to a model: logits where it has an output table, cached decoding where it generates."""
    head = () if backbone or embedding_of(model, OUTPUT) is None else (LOGITS,)
    decoding = (CACHED,) if not backbone and generates(model) else ()
    return HIDDEN, *head, *decoding, EVERY_ID, RIGHT, LEFT, LONG


def coverage(
    applies: tuple[str, ...], ran: list[Probe], outputs: frozenset[str], live: int, not_kept: int
) -> Coverage:  # fmt: skip
    """What the probes that ``ran`` and the names of what they gave cover; ``not_kept`` outputs were left out."""
    ids = covered_ids(ran)
    found = {
        HIDDEN: any("hidden" in name for name in outputs),
        LOGITS: any("logits" in name for name in outputs),
        CACHED: any(probe.steps for probe in ran),
        EVERY_ID: ids == live,
        RIGHT: any(bool((probe.mask[:, -1] == 0).any()) for probe in ran),
        LEFT: any(bool((probe.mask[:, 0] == 0).any()) for probe in ran),
        LONG: any("longest position" in probe.name for probe in ran),
    }
    words = {EVERY_ID: f"{live - ids:,} of {live:,} old ids"}
    lost = [words.get(name, name) for name in applies if not found[name]]
    if not_kept:
        lost.append(f"{not_kept} {'output' if not_kept == 1 else 'outputs'} for want of memory")
    return Coverage(tuple(name for name, there in found.items() if there), tuple(lost))
