"""The command line: which commands and options there are, and how each ends. Nothing in graftkit prints but this and `commands`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graftkit import commands, usage
from graftkit.completion import SHELLS
from graftkit.drafting.kinds import KINDS, USUAL
from graftkit.errors import (
    CommittedWithWarning,
    GraftkitError,
    Locked,
    RecipeError,
    StorageFault,
    VerificationFailed,
    printable,
    shortened,
    system_fault,
)
from graftkit.process import Interrupted, Process

Command = Callable[[argparse.Namespace], int]

#: ``(name, command, text, *positionals)`` -> the parser of a command.
Add = Callable[..., argparse.ArgumentParser]

REVISION = "branch, tag or commit of a hub id"

DEVICE = "where lens and signal run: cpu, cuda or cuda:N"

#: What the arguments without a name are.
POSITIONALS = {
    "RECIPE": "the file of a recipe, or - for standard input",
    "MODEL": "a folder with a checkpoint, or a hub id",
    "A": "a folder with a checkpoint, or a hub id",
    "B": "another one, compared with A",
    "DIR": "the folder of an output",
}

#: Exit code of what should not have happened, that of a software error in sysexits.h.
FAULT = 70


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        command = self.prog.removeprefix("graftkit").strip()
        said = message.removesuffix(", KEY=VALUE")  # overrides need not be there, whatever argparse says
        raise RecipeError(f"{command}{': ' * bool(command)}{printable(said)}; see {self.prog} --help")


def main(arguments: Sequence[str]) -> int:
    """Set up this process, run one command in it and return its exit code, which nothing changes any more."""
    process = Process(debug="--debug" in arguments)
    committed: list[Path | str] = []
    code = 0
    try:
        code = run(arguments, committed)
        lost = process.lost_output()
        if lost is not None and code in (0, VerificationFailed.exit_code):
            code = _after(committed, code, f"standard output: {lost.strerror}")
        process.finish()
    except Interrupted as stop:  # raised once, and `run` lets it through
        process.finish()
        process.drop_output()
        code = _after(committed, 128 + stop.number, "interrupted")
    return code


def _after(committed: Sequence[Path | str], code: int, message: str) -> int:
    """Say what got in the way, and what stands; return the exit code: 7 behind a commit."""
    if committed:
        _complain(f"{_standing(committed)}; {message}")
        return CommittedWithWarning.exit_code
    _complain(f"{message}; nothing was written")
    return code or StorageFault.exit_code


def _standing(committed: Sequence[Path | str]) -> str:
    return f"{printable(committed[0])}: in place and whole"


def run(arguments: Sequence[str], committed: list[Path | str] | None = None) -> int:
    """Run one command and return its exit code; every error is one line on standard error.

    ``committed`` gets the output as soon as it is in place: whatever goes wrong behind that says so, and is 7.
    """
    debug = "--debug" in arguments
    committed = [] if committed is None else committed
    try:
        options = _parse(arguments)
        options.committed = committed.append
        command: Command = options.command
        return command(options)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except Interrupted:
        raise
    except BaseException as error:  # noqa: BLE001 - panics of tokenizers are no Exception
        if debug:
            traceback.print_exc()
        message, code = _judge(error)
        if committed and code != CommittedWithWarning.exit_code:
            code, message = CommittedWithWarning.exit_code, f"{_standing(committed)}; {message}"
        if "--json" in arguments:
            commands.print_error(message.splitlines(), code, committed)
        _complain(message)
        return code


def _judge(error: BaseException) -> tuple[str, int]:
    """What an error says in a line, and its exit code; where the system failed underneath, that is to blame."""
    if isinstance(error, StorageFault | Locked | CommittedWithWarning):
        return str(error), error.exit_code
    if fault := system_fault(error):
        return f"{fault}; nothing was written", StorageFault.exit_code
    if isinstance(error, GraftkitError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was written", 130
    if isinstance(error, OSError):
        return f"{printable(error.filename or 'I/O')}: {printable(error.strerror or error)}", StorageFault.exit_code
    what = printable(f"{type(error).__name__}: {error}".split("\n", 1)[0])
    return (
        f"{shortened(what, 300)}: this is a fault of graftkit itself, and nothing was written; run again with --debug for"
        " the traceback, and report it with that to the project's issue tracker"
    ), FAULT


def _complain(message: str) -> None:
    for line in message.splitlines():
        sys.stderr.write(f"graftkit: {shortened(printable(line))}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="graftkit", description="Surgery on pretrained checkpoints, verified before it is saved.",
        epilog=usage.epilog(), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=lambda options: _version() if options.version else _usage(parser))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, command: Command, text: str, *positionals: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = subparsers.add_parser(
            name, help=text, description=text, epilog=usage.epilog(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        for positional in positionals:
            sub.add_argument(positional.lower(), metavar=positional, help=POSITIONALS[positional])
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.add_argument("--debug", action="store_true", help="print a traceback with an error")
        sub.set_defaults(command=command)
        return sub

    _add_commands_of_recipes(add)
    _add_inspect(add)
    _add_diff(add)
    _add_verify(add)
    add("report", commands.report, "rebuild graft_report.html in an output, from its graft_report.json", "DIR")
    _add_selftest(add)
    text = "print what makes a shell complete commands, options and paths"
    sub = add("completion", lambda options: commands.completion(parser, options), text)
    sub.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
    return parser


def _add_commands_of_recipes(add: Add) -> None:
    def with_recipe(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = add(name, command, text, "RECIPE")
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as operations.0.init=mean")
        return sub

    init = add("init", commands.init, "write a recipe to begin with, made for a model; reads no weights", "MODEL")
    kinds = "; ".join(f"{name}: {text}" for name, text in KINDS.items())
    init.add_argument(
        "--for", dest="kind", metavar="KIND", choices=KINDS, default=USUAL, help=f"{kinds} (default: {USUAL})"
    )
    init.add_argument(
        "-o", "--output", metavar="FILE", help="write the recipe there instead of printing it; it must not exist"
    )
    init.add_argument("--revision", help=REVISION)
    with_recipe("validate", commands.validate, "check a recipe without touching a checkpoint")
    schema = add("schema", commands.schema, "print the JSON Schema of recipes, for editors")
    schema.add_argument(
        "--of", metavar="COMMAND", choices=commands.PRINT_JSON,
        help=f"of what this prints with --json: {', '.join(commands.PRINT_JSON)}",
    )  # fmt: skip
    plan = with_recipe("plan", commands.plan, "show what apply would write; reads no weights")
    apply = with_recipe("apply", commands.apply, "plan, write, verify, and only then let the output appear")
    for sub in (plan, apply):
        sub.add_argument("--output", help="write there instead of the recipe's output")
        sub.add_argument("-q", "--quiet", action="store_true", help="print errors only")
        sub.add_argument("-v", "--verbose", action="store_true", help="print every changed value and tensor")
        sub.add_argument("--overwrite", action="store_true", help="replace an existing output, whole and at the end")
        sub.add_argument(
            "--allow-pickle",
            action="store_true",
            help="let convert read pickles, by torch's unpickler of weights alone",
        )
    apply.add_argument("--dry-run", action="store_true", help="the same as plan")
    apply.add_argument(
        "--if-changed",
        action="store_true",
        help="do nothing where recipe, files, versions and output are those of its report",
    )
    apply.add_argument("--link", action="store_true", help="hard-link unchanged shards (they share the source's bytes)")
    apply.add_argument("--device", help=DEVICE)
    apply.add_argument(
        "--push-to-hub",
        metavar="ORG/NAME",
        help="upload the output at the end, to a repository that is private where it is new",
    )
    apply.add_argument("--public", action="store_true", help="make a new repository of --push-to-hub public")


def _add_inspect(add: Add) -> None:
    sub = add("inspect", commands.inspect, "show architecture, vocabulary and special tokens of a checkpoint", "MODEL")
    sub.add_argument("--revision", help=REVISION)
    sub.add_argument("--nonfinite", action="store_true", help="look for NaN and infinity in every tensor")


def _add_diff(add: Add) -> None:
    text = "compare config, tokenizer and tensors of two checkpoints, or of two adapters"
    sub = add("diff", commands.diff, text, "A", "B")
    sub.add_argument("--exit-code", action="store_true", help="exit with 1 where anything differs")
    sub.add_argument("-v", "--verbose", action="store_true", help="print every changed value and tensor")


def _add_verify(add: Add) -> None:
    sub = add("verify", commands.verify, "check that B behaves like A, an adapter on its base A, or a merge of both")
    sub.add_argument("a", metavar="A", nargs="?", help=POSITIONALS["A"])
    sub.add_argument("b", metavar="B", nargs="?", help=POSITIONALS["B"])
    sub.add_argument("--adapter", metavar="DIR", help="check this adapter on A, or that B is A with it merged")
    sub.add_argument("--no-outputs", action="store_true", help="leave out the reload and the forward")
    sub.add_argument("--lens", action="store_true", help="compare in float64, module by module, and beside the noise")
    sub.add_argument("--signal", action="store_true", help="measure how the signal travels through the blocks of both")
    sub.add_argument("--report", metavar="FILE", help="write the comparison of A and B as an HTML page")
    sub.add_argument(
        "--paged", action="store_true", default=None,
        help="read parameters from the files as the forward asks for them, also where the models fit into memory",
    )  # fmt: skip
    sub.add_argument("--device", help=DEVICE)


def _add_selftest(add: Add) -> None:
    text = "plant faults into copies of a model and see that verify catches every one"
    sub = add("selftest", commands.selftest, text)
    sub.add_argument("model", nargs="?", metavar="MODEL", help="by default the small one that ships with the project")
    sub.add_argument("--no-outputs", action="store_true", help="leave out the reload and the forward")
    sub.add_argument(
        "--without", action="append", default=[], metavar="CHECK", help="switch a check off, and see it fail"
    )
    sub.add_argument("-q", "--quiet", action="store_true", help="print failures and the verdict only")
    sub.add_argument("-v", "--verbose", action="store_true", help="print what each check said, and the clean copies")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; overrides may also stand behind options, where argparse leaves them over."""
    parser = _parser()
    usage.check_command(arguments, usage.commands_of(parser))
    options, rest = parser.parse_known_args(arguments)
    strangers = [text for text in rest if text.startswith("-") or not hasattr(options, "overrides")]
    if strangers:
        parser.error(usage.unrecognized(strangers))
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _version() -> int:
    from graftkit import __version__

    sys.stdout.write(f"graftkit {__version__}\n")
    return 0


def _usage(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return 2
