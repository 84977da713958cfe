"""Whether an output is what applying a recipe again would give, by the report that lies in it. Loads no library that computes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.files import raise_error
from graftkit.checkpoint.inputs import input_files
from graftkit.errors import printable
from graftkit.recipe_file.paths import expand_path
from graftkit.recipe_file.problems import Document, Place
from graftkit.recipe_file.request import is_same
from graftkit.recipe_file.yaml_source import parse_yaml
from graftkit.report.seal import is_sealed
from graftkit.report.versions import installed

if TYPE_CHECKING:
    from graftkit.recipe import Recipe

REPORT = "graft_report.json"

#: From a report to the plain fields of its recipe, where that is the recipe asked for; else None.
FieldsIfSame = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


def unchanged_output(document: Document) -> str | None:
    """The output of a recipe, where its report says that it was made for the same request and nothing has changed since.

    None says nothing: the same recipe can be written in other ways, so :func:`why_stale` of what it means is to be asked then. Needs
    neither pydantic nor the specs of the operations.
    """
    try:
        values: Any = document.data
        output = expand_path(values["output"])
    except (KeyError, TypeError, ValueError):
        return None
    return None if _why_stale(Path(output), lambda report: _asked_for(report, document)) else output


def why_stale(recipe: Recipe) -> str:
    """Why the output of a recipe is not what applying it again would give; empty where it is.

    Recipe, versions, names, sizes and times of the files that it reads, and the output's own files are compared; of weights
    the headers, the sizes, and that none was changed behind the report.
    """
    from graftkit.recipe import dump_recipe

    fields = recipe.plain_fields()
    return _why_stale(Path(recipe.output), lambda report: fields if report["recipe"] == dump_recipe(recipe) else None)


def _asked_for(report: Mapping[str, Any], document: Document) -> Mapping[str, Any] | None:
    """The plain fields of the recipe in a report, where the document asks for the same."""
    if not is_same(report["request"], document):
        return None
    fields = parse_yaml(report["recipe"], lambda line: Place(f"{REPORT}:{line}", (0, line))).data
    return fields if isinstance(fields, dict) else None


def _why_stale(output: Path, fields_if_same: FieldsIfSame) -> str:
    path = output / REPORT
    try:
        raw = path.read_bytes()
        if not is_sealed(raw):
            return f"{REPORT} is not the one that was written"
        report, written = json.loads(raw), path.stat().st_mtime_ns
        fields = fields_if_same(report)
        if fields is None:
            return "the recipe is another one"
        return next(_differences(fields, output, report, written), "")
    except FileNotFoundError as error:
        return f"{printable(error.filename)} is not there"
    except (KeyError, TypeError, ValueError, AttributeError, OSError, RecursionError):
        return f"{REPORT} cannot be read as a report of this version"


def _differences(recipe: Mapping[str, Any], output: Path, report: Mapping[str, Any], written: int) -> Iterator[str]:
    for name, now in installed().items():
        if (then := report["versions"].get(name)) != now:
            yield f"{name} was {printable(then)}, now it is {now}"
    then, files = report["inputs"], input_files(recipe)
    if "base_model" not in files:
        yield "base_model is not on this machine"
    for place in dict.fromkeys([*then, *files]):
        if then.get(place) != files.get(place):
            yield f"{place}: {printable(_changed(then.get(place) or {}, files.get(place) or {}))} is not what it was"
    yield from _changed_files(output, report, written)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return next(name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name))


def _changed_files(output: Path, report: Mapping[str, Any], written: int) -> Iterator[str]:
    """Yield a sentence for each file of the output that is not the one that was written, or that nobody wrote."""
    data: dict[str, int] = {}
    for entry in report["ledger"]:
        nbytes = entry["source_bytes"] + entry["produced_bytes"]
        data[entry["shard"]] = data.get(entry["shard"], 0) + nbytes
    known = {REPORT}
    for entry in report["files"]:
        known.add(entry["name"])
        file, weights = output / entry["name"], entry["covers"] == "header"
        status = file.stat()
        size = entry["bytes"] + (data[entry["name"]] if weights else 0)
        late = weights and status.st_mtime_ns > written
        with file.open("rb") as opened:
            same = hashlib.sha256(opened.read(entry["bytes"])).hexdigest() == entry["sha256"]
        if late or status.st_size != size or not same:
            yield f"{printable(entry['name'])} is not the file that was written"
    for root, folders, names in os.walk(output, onerror=raise_error):
        folders[:] = (name for name in folders if not name.startswith("."))
        for name in names:
            relative = str(Path(root, name).relative_to(output))
            if relative not in known and not name.startswith("."):
                yield f"{printable(relative)} was not written by that run"
