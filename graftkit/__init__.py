"""graftkit: config-driven surgery on pretrained Hugging Face checkpoints, verified before it is saved.

    import graftkit

    recipe = graftkit.load_recipe("recipe.yaml")
    print(graftkit.plan(recipe).new_tokens)
    report = graftkit.apply(recipe)
    print(report.verdict)

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PLACES = {
    "Recipe": "graftkit.recipe",
    "load_recipe": "graftkit.recipe",
    "parse_recipe": "graftkit.recipe",
    "Plan": "graftkit.planning",
    "plan": "graftkit.planning",
    "apply": "graftkit.engine",
    "Report": "graftkit.report.report",
    "diff": "graftkit.compare",
    "verify": "graftkit.compare",
    "verify_adapter": "graftkit.adapter_verification",
    "verify_merge": "graftkit.merge_verification",
    "inspect": "graftkit.inspection",
}

__all__ = ["GraftkitError", "__version__", *_PLACES]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> object:
    if name == "GraftkitError":
        from graftkit.errors import GraftkitError

        return GraftkitError
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'graftkit' has no attribute {name!r}")
