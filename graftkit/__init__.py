"""graftkit: config-driven surgery on pretrained Hugging Face checkpoints, verified before it is saved.

    import graftkit

    recipe = graftkit.load_recipe("recipe.yaml")
    print(graftkit.plan(recipe).new_tokens)
    report = graftkit.apply(recipe)
    print(report.verdict)

Importing this package loads neither torch nor transformers: a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graftkit.adapter_verification import AdapterVerification, verify_adapter
    from graftkit.compare import Difference, Verification, diff, verify
    from graftkit.engine import apply
    from graftkit.errors import GraftkitError
    from graftkit.grafting import graft
    from graftkit.inspection import Inspection, inspect
    from graftkit.merge_verification import MergeVerification, verify_merge
    from graftkit.planned import Plan
    from graftkit.planning import plan
    from graftkit.recipe import Recipe, load_recipe, parse_recipe
    from graftkit.report.report import Report

__version__ = "0.1.0"

__all__ = [
    "AdapterVerification",
    "Difference",
    "GraftkitError",
    "Inspection",
    "MergeVerification",
    "Plan",
    "Recipe",
    "Report",
    "Verification",
    "__version__",
    "apply",
    "diff",
    "graft",
    "inspect",
    "load_recipe",
    "parse_recipe",
    "plan",
    "verify",
    "verify_adapter",
    "verify_merge",
]

#: What is said on Windows, which nobody can test here.
ELSEWHERE = "graftkit runs on Linux and macOS; on Windows run it inside WSL"

#: Where each name is defined.
_PLACES = {
    "AdapterVerification": "graftkit.adapter_verification",
    "verify_adapter": "graftkit.adapter_verification",
    "Difference": "graftkit.compare",
    "Verification": "graftkit.compare",
    "diff": "graftkit.compare",
    "verify": "graftkit.compare",
    "apply": "graftkit.engine",
    "GraftkitError": "graftkit.errors",
    "graft": "graftkit.grafting",
    "Inspection": "graftkit.inspection",
    "inspect": "graftkit.inspection",
    "MergeVerification": "graftkit.merge_verification",
    "verify_merge": "graftkit.merge_verification",
    "Plan": "graftkit.planned",
    "plan": "graftkit.planning",
    "Recipe": "graftkit.recipe",
    "load_recipe": "graftkit.recipe",
    "parse_recipe": "graftkit.recipe",
    "Report": "graftkit.report.report",
}


if not TYPE_CHECKING:  # a type checker would take any name for an object

    def __getattr__(name: str) -> object:
        if name in _PLACES:
            if sys.platform == "win32":
                raise ImportError(ELSEWHERE)
            return getattr(importlib.import_module(_PLACES[name]), name)
        raise AttributeError(f"module 'graftkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
