"""A chat template kept within bounds: compiled and rendered in a child process before it is compiled here.

Jinja bounds neither loops in loops nor what a string is multiplied by, and multiplies constants when it compiles.
"""

from __future__ import annotations

import functools

from graftkit.checkpoint.child import SECONDS, OutOfBounds, run_in_child
from graftkit.checkpoint.tokenizer.conversation import SYSTEM, TOOL, TURNS, in_parts

#: Special tokens that a template may name.
_TOKENS = dict.fromkeys((f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")), "<token>")

#: Bytes of address space that the child may use: no template needs much.
BYTES = 1 << 30

#: Characters that a few sentences may become, with all that a template puts before and behind them.
CHARACTERS = 1_000_000

#: Ends with an error where memory is not enough, and well where the template is refused for what it says; prints how long a text is
#: that is too long. Constants come first, since they are computed when a template is compiled, whether it uses them or not.
_PROGRAM = """
from jinja2 import nodes
from graftkit.checkpoint.tokenizer.chat_template import template_environment

def refuse(message):
    raise ValueError(message)

def bounded(compute):
    try:
        value = compute()
        length = len(value) if isinstance(value, (str, list, tuple, dict)) else 0
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, MemoryError):  # which jinja keeps to itself where it computes constants
            raise
        return
    if length > job["characters"]:
        print(length)
        raise SystemExit

environment = template_environment()
environment.globals["raise_exception"] = refuse
try:
    constants = list(environment.parse(job["template"]).find_all(nodes.Expr))
except Exception:
    raise SystemExit
for node in constants:
    bounded(lambda: node.as_const(nodes.EvalContext(environment)))
try:
    template = environment.from_string(job["template"])
except Exception:  # nested too deeply, or no template
    raise SystemExit
for given in job["conversations"]:
    bounded(lambda: template.render(**job["tokens"], **given))
"""


@functools.lru_cache(maxsize=64)
def why_unbounded(template: str) -> str:
    """What a template takes more of than short conversations need; empty where it does not."""
    spellings = (TURNS, in_parts(TURNS), (SYSTEM, *TURNS))
    conversations = [{"messages": turns, "tools": tools} for turns in spellings for tools in (None, [TOOL])]
    job = {
        "template": template,
        "conversations": conversations,
        "tokens": _TOKENS,
        "characters": CHARACTERS,
        "bytes": BYTES,
    }
    try:
        length = run_in_child(_PROGRAM, job)
    except OutOfBounds:
        return f"takes more than {SECONDS} seconds or {BYTES >> 30} GiB of memory for a short conversation"
    return f"makes a value of {length:,} characters" if length else ""
