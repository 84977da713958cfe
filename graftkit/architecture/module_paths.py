"""Dotted names of modules and parameters: which lies below which, and what one is called when a module has moved."""

from __future__ import annotations

import re


def moved(name: str, old: str, new: str) -> str | None:
    """A name below the module ``old`` as it is below ``new``; another name as it is, None where that would be a name below ``new``."""
    if old == new:
        return name
    if is_below(name, old):
        return below(new, name[len(old) :].lstrip("."))
    return None if is_below(name, new) else name


def is_below(name: str, module: str) -> bool:
    """Whether a name is that of ``module`` or of what it holds; the empty name holds everything."""
    return not module or f"{name}.".startswith(f"{module}.")


def below(module: str, name: str) -> str:
    """The name of what ``module`` calls ``name``; either may be empty."""
    return ".".join(word for word in (module, name) if word)


def is_side(side: str, stack: str) -> bool:
    """Whether ``decoder_hidden_states``, of which ``side`` is ``decoder``, are those of ``stack``, such as ``text_decoder.layers``.

    What is called encoder or decoder first is the side: the stack of a decoder may be ``decoder.bert.encoder.layer``.
    """
    ours, theirs = (
        [word for word in re.split("[._]", name) if word in ("encoder", "decoder")] for name in (side, stack)
    )
    return ours[0] == theirs[0] if ours and theirs else side in stack.split(".")
