"""The command line of one rank among several: what it runs, who prints, and the exit code that all of them end with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit import commands
from graftkit.errors import RecipeError, StorageFault
from graftkit.ranks.alone import Command, Complain
from graftkit.ranks.place import RankPlace
from graftkit.recipe_file.paths import is_url

if TYPE_CHECKING:
    from graftkit.ranks.group import Group


class Member:
    """Rank ``place``: `apply` is done together, every other command by rank 0 alone."""

    def __init__(self, place: RankPlace) -> None:
        self.place = place
        self._group: Group | None = None

    @property
    def prints(self) -> bool:
        """Whether its standard output is that of the command."""
        return self.place.rank == 0

    def command(self, options: argparse.Namespace) -> Command:
        """What this rank does of a command."""
        if options.command is commands.apply and not options.dry_run:
            return self._lead if self.prints else self._help
        command: Command = options.command
        return command if self.prints else lambda _: 0

    def failed(self, message: str, code: int, complain: Complain, committed: Sequence[Path | str] = ()) -> int:
        """Say why the command ends, if no other rank has said so; return the exit code of the rank that ended first."""
        if self._group is None:
            if self.place.rank == 0 or code == StorageFault.exit_code:
                complain(self._signed(message))
            return code
        if self._group.dead is not None:
            message, code = self._group.dead, StorageFault.exit_code
        end = self._group.end(code)
        if committed or end is None or end.rank == self.place.rank:
            complain(self._signed(message))
            return code
        return end.code

    def ended(self, code: int) -> int:
        """Tell the others that this rank is done, and return the exit code."""
        if self._group is not None:
            self._group.end(code)
            self._group.leave()
        return code

    def _signed(self, message: str) -> str:
        return "\n".join(f"rank {self.place.rank}: {line}" for line in message.splitlines())

    def _join(self, options: argparse.Namespace) -> Group:
        if options.recipe == "-":
            raise RecipeError("a recipe from standard input reaches one rank alone; name a file")
        recipe, _ = commands.read_recipe(options)
        if recipe.output_format != "safetensors" or is_url(recipe.output):
            raise RecipeError("several ranks write safetensors files into a folder; for another output run one process")
        commands.quiet_libraries()
        from graftkit.ranks.group import Group

        group = Group(self.place)
        self._group = group
        group.join()
        return group

    def _lead(self, options: argparse.Namespace) -> int:
        """`apply`, with the others helping to write."""
        group = self._join(options)
        from graftkit.ranks.leader import LeaderShare

        options.share, note = LeaderShare(group), options.committed

        def committed(output: Path | str) -> None:
            note(output)
            group.release()
            group.end(0)

        options.committed = committed
        return commands.apply(options)

    def _help(self, options: argparse.Namespace) -> int:
        group = self._join(options)
        from graftkit.ranks.helper import help_to_apply
        from graftkit.recipe.load import places_added

        recipe, document = commands.read_recipe(options)
        with places_added(document):
            return help_to_apply(recipe, group, link=options.link, allow_pickle=options.allow_pickle)
