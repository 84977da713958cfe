"""A trimmed output with its report, as the subject of faults: what is renumbered in one place and not in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.engine import apply
from graftkit.errors import InputRejected, RecipeError
from graftkit.selftest.copies import edit_json
from graftkit.selftest.fault import BYTES, CONFIG, REPORT, TOKENIZER, Fault
from graftkit.selftest.grown import GrownSubject, input_table, shift_rows
from graftkit.selftest.subject import NotApplicable, Subject, first

FILE, GENERATION = "tokenizer.json", "generation_config.json"


def make_trimmed(model: Subject, room: Path) -> GrownSubject:
    """Trim the model to every second token, in ``room``, without running it.

    Raises:
        NotApplicable: the vocabulary of this model cannot be trimmed.
    """
    tokens = [token for index, token in sorted(model.tokenizer.tokens.items()) if index % 2 and token.strip()]
    recipe = {
        "version": 1,
        "base_model": str(model.checkpoint.directory),
        "operations": [{"op": "trim_vocab", "keep": {"tokens": tokens}}],
        "verify": {"outputs": False},
        "output": str(room / "trimmed"),
    }
    try:
        apply(recipe)
    except (InputRejected, RecipeError) as refused:
        raise NotApplicable(f"this model is not trimmed: {refused}") from refused
    return GrownSubject(model, room / "trimmed", Checkpoint.open(str(room / "trimmed")))


def _merge(subject: GrownSubject) -> str:
    merges = subject.checkpoint.documents[FILE]["model"].get("merges")
    if not merges:
        raise NotApplicable("the tokenizer has no merges")
    return f"merge {len(merges) // 2}"


def _drop_merge(directory: Path, _: GrownSubject, place: str) -> None:
    index = int(place.split()[1])
    edit_json(directory, FILE, lambda tokenizer: tokenizer["model"]["merges"].pop(index))


def _stale(subject: GrownSubject) -> int:
    """The old id of a token that has another one now, and that another token has now."""
    before, after = subject.model.tokenizer, read_tokenizer(subject.checkpoint.documents)
    moved = (index for index, token in before.tokens.items() if after.ids.get(token, index) != index < after.size)
    return int(first(moved, "no id has moved"))


def _generation(subject: GrownSubject) -> str:
    if GENERATION not in subject.checkpoint.documents:
        raise NotApplicable(f"no {GENERATION}")
    return f"eos_token_id {_stale(subject)}"


def _keep_in_generation(directory: Path, _: GrownSubject, place: str) -> None:
    key, index = place.split()
    edit_json(directory, GENERATION, lambda values: values.update({key: int(index)}))


def _frame(subject: GrownSubject) -> str:
    frame = subject.checkpoint.documents[FILE].get("post_processor")
    names = (name for part in _parts(frame) for name in part.get("special_tokens") or ())
    return str(first(names, "the post-processor names no token by its id"))


def _parts(frame: Any) -> list[dict[str, Any]]:
    return [frame, *(frame.get("processors") or ())] if isinstance(frame, dict) else []


def _keep_in_frame(directory: Path, subject: GrownSubject, name: str) -> None:
    index = _stale(subject)

    def change(tokenizer: dict[str, Any]) -> None:
        for part in _parts(tokenizer["post_processor"]):
            if name in (part.get("special_tokens") or ()):
                part["special_tokens"][name]["ids"] = [index]

    edit_json(directory, FILE, change)


TRIMMED_FAULTS: tuple[Fault[GrownSubject], ...] = (
    Fault("trimmed: merge left out", _merge, _drop_merge, (REPORT, TOKENIZER)),
    Fault(
        "trimmed: id of generation_config not renumbered", _generation, _keep_in_generation, (REPORT, CONFIG, TOKENIZER)
    ),
    Fault("trimmed: id of the post-processor not renumbered", _frame, _keep_in_frame, (REPORT, TOKENIZER)),
    Fault("trimmed: rows shifted by one", input_table, shift_rows, (REPORT, BYTES)),
)
