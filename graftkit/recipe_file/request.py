"""What was asked for, so that the same recipe is known again without a look at what its values mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from graftkit.recipe_file.paths import RecipeFolder, expand_path
from graftkit.recipe_file.problems import Document


@dataclass(frozen=True, slots=True)
class Request:
    """The values of a recipe's file with the overrides in place, by digest, and where its paths led.

    ``expanded`` are its paths, and what each was with ``~`` and ``${NAME}`` replaced; ``found`` are those, and where each was found.
    """

    sha256: str
    expanded: Mapping[str, str]
    found: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The request as a report holds it."""
        return asdict(self)


def request_of(document: Document) -> Request | None:
    """The request that a document made, once its recipe is known; None for values that come from no file."""
    folder = document.folder
    return None if folder is None else Request(_digest(document), dict(folder.expanded), dict(folder.found))


def is_same(request: Mapping[str, Any], document: Document) -> bool:
    """Whether a document asks for what a report was asked for, and every path leads today where it led then.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: what should be a request is none, or a variable of a path is gone.
    """
    if document.folder is None or document.problems or request["sha256"] != _digest(document):
        return False
    folder = RecipeFolder(document.folder.folder)
    return all(expand_path(path) == then for path, then in request["expanded"].items()) and all(
        folder.find(path) == then for path, then in request["found"].items()
    )


def _digest(document: Document) -> str:
    return hashlib.sha256(json.dumps(document.data).encode()).hexdigest()
