"""The check on texts that a recipe names for a change that is meant."""

from __future__ import annotations

from pathlib import Path

from graftkit.checkpoint.examples import first_texts
from graftkit.errors import RecipeError
from graftkit.verification.checks import Check
from graftkit.verification.given_texts import MOST_CHARACTERS, GivenTextsCheck


def texts_checks(path: str | None) -> tuple[Check, ...]:
    """The check that measures KL and perplexity on the texts of a file; none without a file.

    Raises:
        RecipeError: it cannot be read, or holds none.
    """
    if path is None:
        return ()
    try:
        return (GivenTextsCheck(first_texts(Path(path), MOST_CHARACTERS)),)
    except RecipeError as error:
        raise RecipeError(error.problems, field="texts") from error
