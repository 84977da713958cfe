"""Tensors that patterns of a recipe choose by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from graftkit.errors import RecipeError, printable
from graftkit.recipe_file.wording import did_you_mean, shown


def matching(
    patterns: Iterable[str], names: Mapping[str, tuple[str, ...]], field: str = "parameters", what: str = "parameter"
) -> list[str]:
    """The tensors of which one name matches a pattern and none a pattern that begins with ``!``; ``names`` gives all names of each.

    Raises:
        RecipeError: a pattern of the recipe's ``field`` matches none, or nothing is left.
    """
    hits = {
        pattern: {disk for disk, both in names.items() if any(fnmatchcase(n, pattern.removeprefix("!")) for n in both)}
        for pattern in patterns
    }
    wrong = [(index, pattern) for index, (pattern, found) in enumerate(hits.items()) if not found]
    if wrong:
        fields = [f"{field}.{index}" for index, _ in wrong]
        raise RecipeError([_no_match(pattern, names, what) for _, pattern in wrong], field=fields)
    taken = [found for pattern, found in hits.items() if not pattern.startswith("!")]
    left_out = set().union(*(found for pattern, found in hits.items() if pattern.startswith("!")))
    chosen = set().union(*taken) if taken else set(names)
    found = [disk for disk in names if disk in chosen - left_out]
    if not found:
        raise RecipeError("selects nothing: the patterns with ! leave out all that the others take")
    return found


def _no_match(pattern: str, names: Mapping[str, tuple[str, ...]], what: str) -> str:
    known = {step for both in names.values() for name in both for step in name.split(".")}
    steps = pattern.removeprefix("!").split(".")
    mended = [step if "*" in step or step in known else did_you_mean(step, known) or step for step in steps]
    if len(steps) == 1 and (near := did_you_mean(pattern.strip("!*"), known)):
        mended = [pattern.removeprefix("!").replace(pattern.strip("!*"), near)]
    text = f"the pattern {shown(printable(pattern))} matches no {what}"
    if mended != steps:
        return f"{text}; did you mean {shown('.'.join(mended))}?"
    return f"{text}; a name here is {shown(printable(next(iter(names.values()))[-1]))}"
