"""An adapter that was really trained, as somebody's trainer leaves it: without a report, and with a B that is not zero."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graftkit.adapter_verification import verify_adapter
from graftkit.checkpoint.adapter import CONFIG, FOLDER
from graftkit.engine import apply
from graftkit.errors import GraftkitError
from graftkit.running.forward import load, undisturbed
from graftkit.running.reference import plan_probes
from graftkit.selftest.adapters import AdapterSubject
from graftkit.selftest.bench import first_sentences
from graftkit.selftest.copies import edit_json
from graftkit.selftest.report import CleanRun
from graftkit.verification.adapters.liveness import backward, cut

#: Steps and learning rates: a short training whose update half precision mostly rounds away, and one that it keeps.
TRAININGS = ((2, 1e-5), (4, 1e-3))


def clean_runs(subject: AdapterSubject, room: Path) -> Iterator[CleanRun]:
    """Train the adapter, save it as peft does, and see whether verifying or merging it is flagged."""
    source = subject.model.checkpoint.directory
    for steps, rate in TRAININGS:
        folder = room / "trained"
        train(source, subject.output / FOLDER, folder, steps, rate)
        try:
            flagged = first_sentences(verify_adapter(str(folder), str(source)).found)
            yield CleanRun(f"adapter trained for {steps} steps at {rate:g}; verified", flagged)
            yield CleanRun(
                f"adapter trained for {steps} steps at {rate:g}; merged", _merge(source, folder, room / "merged")
            )
        finally:
            shutil.rmtree(folder)


def train(source: Path, adapter: Path, folder: Path, steps: int, rate: float) -> None:
    """Take AdamW steps along a random functional of the outputs, and save adapter and config with peft in ``folder``."""
    import torch
    from peft import PeftModel

    with undisturbed():
        model: Any = PeftModel.from_pretrained(load(source).model, str(adapter), is_trainable=True)
        inner = model.get_base_model()
        probe = cut(plan_probes(inner, source, None, 0, None)[0][0])
        optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], rate)
        for step in range(steps):
            backward(inner, probe, frozenset(), step)
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
    edit_json(folder, CONFIG, lambda config: config.update(base_model_name_or_path=str(source)))


def _merge(source: Path, adapter: Path, output: Path) -> dict[str, str]:
    recipe = {
        "version": 1,
        "base_model": str(source),
        "operations": [{"op": "merge_adapter", "adapter": str(adapter)}],
        "output": str(output),
    }
    try:
        apply(recipe)
    except GraftkitError as error:
        return {"merge": str(error)}
    shutil.rmtree(output)
    return {}
