"""What rank_pattern and alpha_pattern of an adapter name and the adapter does not have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from graftkit.architecture.peft.edits import Edit, Factors
from graftkit.architecture.peft.patterns import unmatched
from graftkit.checkpoint.adapter import CONFIG


def pattern_notes(config: Mapping[str, Any], edits: Iterable[Edit]) -> Iterator[str]:
    """Yield a note for each pattern of an adapter's ``config`` that fits no weight among ``edits``; peft says nothing of it."""
    weights = [edit.weight for edit in edits if isinstance(edit, Factors)]
    names = {name for weight in weights for name in (weight, weight.removesuffix(".weight"))}
    for field in ("rank_pattern", "alpha_pattern"):
        for sentence in unmatched(config.get(field) or {}, names):
            yield f"{CONFIG}: {field}: {sentence}; it has no effect, in peft either"
