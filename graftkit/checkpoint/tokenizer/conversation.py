"""Whether a chat template says what the messages of a conversation say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from graftkit.errors import printable

Turns = tuple[Mapping[str, Any], ...]

#: Renders messages, and with ``tools`` those too; raises whatever the template raises.
Render = Callable[..., str]

SYSTEM = {"role": "system", "content": "Zwölf Boxkämpfer jagen Viktor."}
TURNS: Turns = (
    {"role": "user", "content": "Where is the quokka?"},
    {"role": "assistant", "content": "Behind the 7 jars."},
)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "count_quokkas",
        "description": "Count them.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


def renders(text: str, special: Mapping[str, str]) -> Render:
    """How transformers renders the template ``text`` with the ``special`` tokens that it may name.

    Only for a template that :func:`~graftkit.checkpoint.tokenizer.template_bounds.why_unbounded` has nothing against.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(turns: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
        return str(render_jinja_template([turns], tools=tools, chat_template=text, **special)[0][0])

    return render


def lost_messages(render: Render) -> Iterator[str]:
    """Yield ``loses the messages: ...`` where no spelling of a conversation is rendered with what its messages say."""
    found = [rendered(render, turns) for turns in (TURNS, in_parts(TURNS))]
    if not any(_says(shown, TURNS) for shown, _ in found):
        shown, why = next((item for item in found if not item[1]), found[0])
        what = f"fails: {why}" if why else f"gives {short(shown)}"
        yield f"loses the messages: a question and its answer, rendered, {what}"
        return
    for turns in ((SYSTEM, *TURNS), in_parts((SYSTEM, *TURNS))):
        shown, why = rendered(render, turns)
        if not why and _says(shown, (SYSTEM,)) and not _says(shown, TURNS):
            yield f"loses the messages behind a system message: rendered, it gives {short(shown)}"
            return


def lost_tools(render: Render, text: str) -> Iterator[str]:
    """Yield how a template whose ``text`` names tools does not show one that it is given."""
    if not re.search(r"\btools\b", text):
        return
    found = [rendered(render, turns, tools=[TOOL]) for turns in (TURNS[:1], TURNS, in_parts(TURNS))]
    if not any(TOOL["function"]["name"] in shown for shown, _ in found):
        why = next((why for _, why in found if why), "")
        yield f"names tools and shows none: with one, it {f'fails: {why}' if why else f'gives {short(found[0][0])}'}"


def rendered(render: Render, turns: Turns, **more: Any) -> tuple[str, str]:
    """The conversation as text, and why it could not be rendered, one of them empty."""
    try:
        shown = render([dict(turn) for turn in turns], **more)
    except Exception as error:  # noqa: BLE001 - whatever a template raises says that it does not take these messages
        return "", f"{type(error).__name__}: {printable(str(error).partition(chr(10))[0])}"
    return str(shown), ""


def in_parts(turns: Turns) -> Turns:
    """The same messages as models with images take them: each content is a list of parts."""
    return tuple({**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns)


def short(text: str) -> str:
    """A quoted beginning of a text."""
    shown = printable(text)
    return repr(shown if len(shown) <= 60 else f"{shown[:57]}...")


def _says(shown: str, turns: Turns) -> bool:
    return all(str(turn["content"]) in shown for turn in turns)
