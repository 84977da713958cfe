"""`schema` and `completion`: what the command line is, for editors and shells."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from graftkit.commands.shared import print_json, quiet_libraries


def schema(options: Namespace) -> int:
    """Print the JSON Schema of recipes, or of what a command prints."""
    if options.of:
        quiet_libraries()
        from graftkit.printed_json import printed_schema

        return print_json(printed_schema(options.of))
    from graftkit.recipe import json_schema

    return print_json(json_schema())


def completion(parser: ArgumentParser, options: Namespace) -> int:
    """Print the script with which a shell completes the command line."""
    from graftkit.completion import completion_script

    script = completion_script(parser, options.shell)
    if options.json:
        return print_json({"shell": options.shell, "script": script})
    sys.stdout.write(f"{script}\n")
    return 0
