"""A chat template kept within bounds: compiled and rendered in a child process before it is compiled here.

Jinja bounds neither loops in loops nor what a string is multiplied by, and multiplies constants when it compiles.
"""

from __future__ import annotations

import functools

from graftkit.checkpoint.child import BYTES, SECONDS, OutOfBounds, run_in_child
from graftkit.checkpoint.tokenizer.conversation import SYSTEM, TOOL, TURNS, in_parts

#: Special tokens that a template may name.
_TOKENS = dict.fromkeys((f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")), "<token>")

#: Ends with an error where memory is not enough, and well where the template is refused for what it says.
_PROGRAM = """
from jinja2 import nodes
from graftkit.checkpoint.tokenizer.chat_template import template_environment

def refuse(message):
    raise ValueError(message)

environment = template_environment()
environment.globals["raise_exception"] = refuse
environment.optimized = False
try:
    template = environment.from_string(job["template"])
except Exception:
    raise SystemExit  # no template, or one that is nested too deeply, which takes memory too
for node in environment.parse(job["template"]).find_all(nodes.Expr):
    try:
        node.as_const(nodes.EvalContext(environment))
    except Exception as error:
        if isinstance(error.__cause__, MemoryError):  # which a compilation that multiplies constants keeps to itself
            raise
for given in job["conversations"]:
    try:
        template.render(**job["tokens"], **given)
    except MemoryError:
        raise
    except Exception:
        pass
"""


@functools.lru_cache(maxsize=64)
def why_unbounded(template: str) -> str:
    """What a template takes more of than short conversations need; empty where it does not."""
    spellings = (TURNS, in_parts(TURNS), (SYSTEM, *TURNS))
    conversations = [{"messages": turns, "tools": tools} for turns in spellings for tools in (None, [TOOL])]
    try:
        run_in_child(_PROGRAM, {"template": template, "conversations": conversations, "tokens": _TOKENS})
    except OutOfBounds:
        return f"takes more than {SECONDS} seconds or {BYTES >> 30} GiB of memory for a short conversation"
    return ""
