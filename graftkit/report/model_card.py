"""The model card: front matter with ``base_model``, what was grafted, how it was verified, then the source's card."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from graftkit.checkpoint.files import is_there
from graftkit.errors import printable
from graftkit.recipe_file.paths import is_url

if TYPE_CHECKING:
    from graftkit.planned import Plan
    from graftkit.report.report import Report

#: What cards of embedding models are tagged with, beside the tasks that transformers knows.
_TASKS_OF_EMBEDDINGS = ("sentence-similarity", "feature-extraction", "sentence-transformers")

#: Tokens that a card lists, at most; all stand in the report.
TOKENS = 10

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n?", re.DOTALL)


def model_card(report: Report, plan: Plan) -> str:
    """Return the card's Markdown; the source's front matter is kept where it still holds, with ``base_model`` set to the source."""
    source = plan.source.documents.get("README.md", "")
    source = source if isinstance(source, str) else ""
    front, body = split_front_matter(source)
    name = base_named(plan, plan.recipe.output)
    front = {**_still_true(front, plan), "base_model": name}
    front["tags"] = [*(tag for tag in _tags(front) if tag != "graftkit"), "graftkit"]
    grafted = "".join(f"\n{part}\n" for part in _tokens(plan))
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{header}---\n\n# Grafted with graftkit\n\nFrom `{cell(name)}`. {report.verdict}.\n{grafted}\n"
        f"{_checks(report)}\n"
        f"Every tensor with its digest and every measured figure stand in `graft_report.json`;"
        f" `graft_recipe.yaml` makes this checkpoint again.\n\n{body}"
    )


def _tokens(plan: Plan) -> Iterator[str]:
    """The new and the renamed tokens, as tables; the first of many."""
    for title, rows in (
        ("new token | id", [f"`{cell(token)}` | {index}" for token, index in plan.new_tokens.items()]),
        ("token | new name", [f"`{cell(old)}` | `{cell(new)}`" for old, new in plan.renamed_tokens.items()]),
    ):
        lines = "\n".join(f"| {row} |" for row in rows[:TOKENS])
        more = f"\n\n… and {len(rows) - TOKENS:,} more, in `graft_report.json`" if len(rows) > TOKENS else ""
        if rows:
            yield f"| {title} |\n|---|---|\n{lines}{more}"


def base_named(plan: Plan, folder: str) -> str:
    """The hub id of the source, or the way to its folder from ``folder``, by its name alone where the output is in a store.

    Where either lies is nobody's business.
    """
    if not is_there(Path(os.path.expanduser(plan.source.name))):
        return plan.source.name
    if is_url(plan.recipe.output):
        return plan.source.directory.name
    return os.path.relpath(plan.source.directory, folder)


def _still_true(front: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The front matter less what it says of the source's task, where the result is of another class; that task is named."""
    before, after = (checkpoint.config.get("architectures") for checkpoint in (plan.source, plan.result))
    if before == after or not after:
        return front
    from transformers.modelcard import TASK_MAPPING

    task = task_of(after[0])
    old = [front.get("pipeline_tag"), front.get("library_name"), *_TASKS_OF_EMBEDDINGS, *TASK_MAPPING]
    kept = {key: value for key, value in front.items() if key not in ("pipeline_tag", "library_name", "tags")}
    tags = [tag for tag in _tags(front) if tag not in old]
    return {**kept, "library_name": "transformers", **({"pipeline_tag": task} if task else {}), "tags": tags}


def task_of(architecture: str) -> str | None:
    """What the hub calls the task of a class, None where it has no name for it."""
    from transformers.modelcard import TASK_MAPPING

    return next((task for task, names in TASK_MAPPING.items() if architecture in names.values()), None)


def _tags(front: dict[str, Any]) -> list[Any]:
    """The tags of a card; none where somebody wrote something else than a list."""
    tags = front.get("tags")
    return tags if isinstance(tags, list) else []


def _checks(report: Report) -> str:
    """What was checked, as a table, and what was not, as a list."""
    rows = "\n".join(f"| {' | '.join(_plain(cell) for cell in row)} |" for row in report.rows())
    missing = "\n".join(f"- {_plain(item['what'])}: {_plain(item['why'])}" for item in report.to_json()["not_checked"])
    return f"| check | result | figure |\n|---|---|---|\n{rows}\n\nNot checked:\n\n{missing}\n"


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Split a card into its YAML front matter and its body; an unreadable front matter stays in the body."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        front = yaml.safe_load(match.group(1))
    except yaml.YAMLError:
        return {}, text
    return (front, text[match.end() :]) if isinstance(front, dict) else ({}, text)


def cell(text: str) -> str:
    """Text for a cell of a table, or between backquotes."""
    return printable(text).replace("|", "\\|").replace("`", "'")


def _plain(text: str) -> str:
    """Text in which nothing is markup: neither of Markdown nor of HTML."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", printable(text).replace("&", "&amp;").replace("<", "&lt;"))
