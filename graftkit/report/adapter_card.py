"""The card in the adapter's folder, for whoever is given that folder alone: what it is, of which base, and how it is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from graftkit.architecture.skeleton import architecture_of
from graftkit.checkpoint.adapter import FOLDER
from graftkit.report.model_card import base_named, cell, task_of
from graftkit.report.page import REPORT
from graftkit.report.terminal.modules import trainable_words

if TYPE_CHECKING:
    from graftkit.planned import Plan
    from graftkit.report.report import Report


#: A value of the config is shown up to so many characters.
LONGEST = 100

#: What the table of fields leaves out: the card says it in its front matter.
_SAID = ("base_model_name_or_path", "peft_type", "inference_mode")


def adapter_card(report: Report, plan: Plan, config: Mapping[str, Any]) -> str:
    """Return the card's Markdown; ``config`` is adapter_config.json.

    ``base_model`` is a hub id, or the way from the adapter's folder to that of the base.
    """
    name = os.pardir if plan.writes_base else base_named(plan, f"{plan.recipe.output}/{FOLDER}")
    task = task_of(architecture_of(plan.result.config))
    front = {"base_model": name, "library_name": "peft", **({"pipeline_tag": task} if task else {})}
    header = yaml.safe_dump({**front, "tags": [config["peft_type"].lower(), "graftkit"]}, sort_keys=False)
    base = "the checkpoint in the folder above" if plan.writes_base else f"`{cell(name)}`"
    return (
        f"---\n{header}---\n\n# An adapter made with graftkit\n\nOf {base}. {report.verdict}.\n\n"
        f"Trains {trainable_words(plan)}.\n\n{_table(config)}\n"
        f"`PeftModel.from_pretrained(model, folder)` puts it on the base. `{REPORT}` above it holds every digest and figure.\n"
    )


def _table(config: Mapping[str, Any]) -> str:
    rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in config.items() if name not in _SAID]
    shown = (value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…" for _, value in rows)
    lines = [f"| {cell(name)} | `{cell(value)}` |\n" for (name, _), value in zip(rows, shown, strict=True)]
    return f"| adapter_config.json | |\n|---|---|\n{''.join(lines)}"
