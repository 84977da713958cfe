"""The tokenizers library kept within bounds: what it panics at is the file's fault, and what has no end is found in a child process.

Regular expressions backtrack and normalizers multiply what they are given; both hold the interpreter while they do, so that
nothing but the end of a process stops them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.checkpoint.child import BYTES, SECONDS, OutOfBounds, run_in_child
from graftkit.errors import GraftkitError, InputRejected, printable

#: How many times longer a normalizer may make a text.
GROWTH = 1000

#: Parts that may hold expressions or rewrite texts, and the words by which they are known to.
_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_UNBOUNDED = ('"Regex"', '"Replace"', '"Prepend"', '"Precompiled"', '"Split"')

_TEXTS = (
    "The quick brown fox jumps over the lazy dog, 12345 times; don't you think so?  x = f(y[0]) + 3.14e-5\n\n\tdef g(x):\n",
    "Größe, naïve, déjà vu. Где находится библиотека? 图书馆在哪里？ مرحبا بالعالم 😀👩‍💻 ﬁ ½ Å",
    *(letter * 300 + "!" for letter in ("a", " ", "0", ".", "aB", "a ", "_", "é")),
)

#: Prints why the library cannot use the document, and nothing where it can.
_PROGRAM = """
from tokenizers import Tokenizer
cannot = "read"
try:
    backend = Tokenizer.from_str(json.dumps(job["document"]))
    cannot = "use"
    for text in job["texts"]:
        changed = backend.normalizer.normalize_str(text) if backend.normalizer else text
        if len(changed) > job["growth"] * len(text):
            raise ValueError(f"its normalizer makes {len(changed):,} characters of {len(text):,}")
        pieces = backend.pre_tokenizer.pre_tokenize_str(changed) if backend.pre_tokenizer else ()
        if backend.decoder:
            backend.decoder.decode([piece for piece, _ in pieces] or [changed])
except BaseException as error:
    print(json.dumps(f"cannot {cannot} it: {error}".split("\\n")[0][:500]))
"""


@contextlib.contextmanager
def tokenizers_faults(name: str = "tokenizer.json", *, cannot: str = "use") -> Iterator[None]:
    """Turn whatever the tokenizers library ends with, its panics too, into an error that names the file.

    Raises:
        InputRejected: the library refused the file, or gave up on a text.
    """
    try:
        yield
    except (GraftkitError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception
        reason = printable(str(error).strip().split("\n", 1)[0][:300])
        raise InputRejected(
            f"{name}: the tokenizers library cannot {cannot} it: {reason}; it is damaged, or needs another version"
        ) from error


def check_bounds(document: Mapping[str, Any]) -> None:
    """Try what rewrites and splits texts in a tokenizer.json on a few texts, in a child process with limits.

    Raises:
        InputRejected: it takes without end, grows without end, or is refused; the part is named.
    """
    for name in _PARTS:
        part = json.dumps(document.get(name), sort_keys=True)
        if any(word in part for word in _UNBOUNDED):
            _check_part(name, part, str(document.get("version")))


@functools.lru_cache(maxsize=64)
def _check_part(name: str, part: str, version: str) -> None:
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    rest = dict.fromkeys((*_PARTS, "truncation", "padding", "post_processor"))
    document = {"version": version, **rest, "added_tokens": [], "model": empty, name: json.loads(part)}
    place = f"tokenizer.json: {name}"
    try:
        refused = run_in_child(_PROGRAM, {"document": document, "texts": _TEXTS, "growth": GROWTH})
    except OutOfBounds as error:
        raise InputRejected(
            f"{place}: takes more than {SECONDS} seconds or {BYTES >> 30} GiB of memory for a few short texts; a regular"
            " expression that backtracks, or a normalizer that multiplies, cannot be used"
        ) from error
    if refused is not None:
        raise InputRejected(f"{place}: the tokenizers library {printable(refused)}")
