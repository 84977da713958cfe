"""What the command line says of itself: exit codes, examples, and what was meant by a command or option that there is not."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence

from graftkit.errors import RecipeError, printable

EXIT_CODES = """\
exit codes:
  0   done
  1   diff --exit-code found a difference
  2   the recipe or the command line is wrong
  3   the checkpoint cannot be operated on
  4   verification failed, nothing was written
  5   the system failed (disk, memory, open files), nothing was committed
  6   another run holds the output
  7   the output is in place and whole, but something behind that failed
  70  a fault of graftkit itself, nothing was committed
  129, 130, 143  stopped by a signal, nothing was committed
"""

#: Command -> lines that show its use. Nothing in them depends on a shell.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "graftkit init MODEL --for tools -o recipe.yaml",
        "graftkit plan recipe.yaml",
        "graftkit apply recipe.yaml",
    ),
    "init": (
        "graftkit init recipes/models/demo-lm --for tools",
        "graftkit init google-bert/bert-base-uncased --for classifier -o classifier.yaml",
    ),
    "validate": ("graftkit validate recipe.yaml", "graftkit validate recipe.yaml operations.0.init=mean"),
    "schema": ("graftkit schema",),
    "plan": ("graftkit plan recipe.yaml", "graftkit plan recipe.yaml --output out/other seed=1 -v"),
    "apply": ("graftkit apply recipe.yaml", "graftkit apply recipe.yaml operations.0.r=8 --output out/r8 --overwrite"),
    "inspect": (
        "graftkit inspect recipes/models/demo-lm",
        "graftkit inspect google-bert/bert-base-uncased --json",
        "graftkit inspect MODEL --blocks --texts texts.jsonl",
    ),
    "report": ("graftkit report out/quickstart",),
    "diff": ("graftkit diff recipes/models/demo-lm out/quickstart", "graftkit diff A B --exit-code"),
    "verify": (
        "graftkit verify recipes/models/demo-lm out/quickstart",
        "graftkit verify --adapter out/lora/adapter",
        "graftkit verify BASE MERGED --adapter DIR",
    ),
    "selftest": ("graftkit selftest", "graftkit selftest MODEL --no-outputs"),
    "completion": (
        "graftkit completion bash > ~/.local/share/bash-completion/completions/graftkit",
        "graftkit completion zsh > ~/.zsh/completions/_graftkit",
    ),
}


def epilog(command: str = "") -> str:
    """What stands below the help of a command, or below that of all."""
    shown = "".join(f"  {line}\n" for line in EXAMPLES[command])
    return f"examples:\n{shown}" + ("" if command else f"\n{EXIT_CODES}")


def commands_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    actions = parser._actions  # noqa: SLF001 - argparse shows them nowhere else
    found = next(action for action in actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    choices: Mapping[str, argparse.ArgumentParser] = found.choices
    return choices


def check_command(arguments: Sequence[str], commands: Collection[str]) -> None:
    """Refuse a command that is none.

    Raises:
        RecipeError: it names the command that was meant, the operation of a recipe that does it, or another tool.
    """
    name = next((text for text in arguments if not text.startswith("-")), None)
    if name is None or name in commands:
        return
    from graftkit.recipe.operations import OPERATIONS
    from graftkit.recipe_file.other_names import elsewhere, known_as
    from graftkit.recipe_file.wording import shown, unknown

    what = f"{shown(name)} is no command of graftkit"
    if name.endswith((".yaml", ".yml", ".json")):
        message = f"{what}; to run a recipe: graftkit apply {name}"
    elif operation := name if name in OPERATIONS else known_as(name, OPERATIONS):
        message = (
            f"{what}; {operation} is an operation of a recipe, and graftkit init MODEL writes a recipe to begin with"
        )
    elif sentence := elsewhere(name):
        message = f"{what}; {sentence}"
    else:
        message = unknown(what, name, commands, all_called="its commands are")
    raise RecipeError(printable(message))


def unrecognized(arguments: Sequence[str]) -> str:
    """What is said of arguments that a command does not have, with the tool that has the first that is known."""
    from graftkit.recipe_file.other_names import elsewhere

    known = next((found for text in arguments if (found := elsewhere(text.partition("=")[0]))), None)
    return f"unrecognized arguments: {' '.join(arguments)}" + (f"; {known}" if known else "")
