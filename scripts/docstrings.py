"""Labelled texts that every Python installation carries: docstrings of the standard library, by the domain of their module."""

from __future__ import annotations

import ast
import importlib
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Domain -> modules, each with all of its submodules. No module stands on both sides of a split.
DOMAINS = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors signal subprocess threading _thread",
    "files": "bz2 fileinput genericpath glob gzip lzma ntpath os pathlib posixpath _pyio shutil stat tarfile tempfile zipapp zipfile",
    "gui": "curses idlelib tkinter turtle turtledemo",
    "language": "ast code codeop dis importlib inspect modulefinder pkgutil pyclbr pydoc runpy symtable tokenize types typing zipimport",
    "mail": "email imaplib mailbox mailcap nntplib poplib smtpd smtplib",
    "network": "cgi ftplib http ipaddress socket socketserver ssl telnetlib urllib webbrowser wsgiref xmlrpc",
    "numbers": "bisect cmath fractions heapq math numbers operator _pydecimal random statistics",
    "testing": "bdb cgitb doctest faulthandler logging pdb pstats timeit trace traceback tracemalloc unittest warnings",
}
LABELS = tuple(DOMAINS)

#: Modules in C, whose docstrings are not in a source file.
COMPILED = ("cmath", "faulthandler", "math", "signal", "_thread")

#: Fewest words of a text, and what stands in the place of a module's name.
WORDS, MASK = 4, "module"


@dataclass(frozen=True, slots=True)
class Text:
    """The first paragraph of a docstring, module names masked."""

    text: str
    label: str
    module: str


@dataclass(frozen=True, slots=True)
class Split:
    """Texts to train on and to test on, of different modules."""

    train: tuple[Text, ...]
    test: tuple[Text, ...]


def texts() -> tuple[Text, ...]:
    """Every text once; one that stands in two domains is left out."""
    names = {name.strip("_") for modules in DOMAINS.values() for name in modules.split()}
    found: dict[str, dict[str, Text]] = {}
    for label, modules in DOMAINS.items():
        for module in modules.split():
            for name, docstring in docstrings_of(module):
                text = " ".join(re.split(r"\n\s*\n", docstring.strip())[0].split())
                parts = names | {part.strip("_") for part in name.split(".")}
                text = re.sub(rf"(?i)\b_*({'|'.join(sorted(parts - {''}))})\b", MASK, text)
                if len(text.split()) >= WORDS:
                    found.setdefault(re.sub(r"\W+", " ", text).lower(), {}).setdefault(label, Text(text, label, module))
    return tuple(next(iter(by_label.values())) for by_label in found.values() if len(by_label) == 1)


def split(everything: tuple[Text, ...], seed: int, *, train: int, test: int, by_module: bool = True) -> Split:
    """``train`` and ``test`` texts of each domain, by lot, from modules that are dealt to the two sides by lot.

    Not ``by_module``, the texts themselves are dealt: what one module says of itself then stands on both sides.

    Raises:
        ValueError: this Python has too few texts or modules of a domain, as one has that comes without tkinter and idlelib.
    """
    draw = random.Random(f"split {seed}")  # noqa: S311 - a benchmark's lot
    sides: tuple[list[Text], list[Text]] = ([], [])
    for label in LABELS:
        texts_of = [text for text in everything if text.label == label]
        if not by_module:
            drawn = draw.sample(texts_of, train + test)
            sides[0].extend(drawn[:train])
            sides[1].extend(drawn[train:])
            continue
        counts = Counter(text.module for text in texts_of)
        left, held = counts.total(), set[str]()
        for module in draw.sample(sorted(counts), len(counts)):
            if sum(counts[name] for name in held) < test and left - counts[module] >= train:
                left -= counts[module]
                held.add(module)
        for side, size, tested in zip(sides, (train, test), (False, True), strict=True):
            dealt = [text for text in texts_of if (text.module in held) is tested]
            if len(dealt) < size:
                raise ValueError(f"this Python has too few modules of the domain {label}: {', '.join(sorted(counts))}")
            side.extend(draw.sample(dealt, size))
    return Split(tuple(sides[0]), tuple(sides[1]))


def docstrings_of(module: str) -> Iterator[tuple[str, str]]:
    """``(module, docstring)`` of every function and class of a module and its submodules, but not of their tests."""
    if module in COMPILED:
        loaded = importlib.import_module(module)
        yield from ((module, value.__doc__) for value in vars(loaded).values() if callable(value) and value.__doc__)
        return
    root = Path(sysconfig.get_path("stdlib"))
    for path in (root / f"{module}.py", *sorted((root / module).rglob("*.py"))):
        relative = path.relative_to(root)
        if not path.exists() or {"test", "tests", "idle_test"} & set(relative.parts):
            continue
        name = ".".join(relative.with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
                found := ast.get_docstring(node)
            ):
                yield name, found
