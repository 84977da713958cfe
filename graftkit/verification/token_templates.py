"""A chat template is the source's, or it is new and says what the messages say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.signals import processor_time
from graftkit.errors import printable
from graftkit.recipe.chat_template import holds_jinja

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: JSON documents that may hold the chat template once more, for servers that read only that.
TEMPLATE_COPIES = ("tokenizer_config.json", "chat_template.json", "processor_config.json")

#: Seconds of the processor that a template may take with one conversation; loops in loops need not end.
RENDERING = 3

_SYSTEM = {"role": "system", "content": "Zwölf Boxkämpfer jagen Viktor."}
_TURNS = ({"role": "user", "content": "Where is the quokka?"}, {"role": "assistant", "content": "Behind the 7 jars."})


def check_templates(before: LoadedTokenizer, after: LoadedTokenizer, *, changed: bool) -> Iterator[str]:
    """Yield how the template is neither the source's nor, where it was to be ``changed``, one that works."""
    old, now = before.chat_template, after.tokenizer.chat_template
    if changed and not now:
        yield "the chat template was to be set, but none is loaded"
    if not changed and old != now:
        yield "the chat template is not the source's" if now else "the chat template is lost"
    was = _named(old)
    for name, text in _named(now).items():
        if text != was.get(name):
            yield from _lost_messages(after, name, text)
    for name in TEMPLATE_COPIES:
        source, copy = ((loaded.document(name) or {}).get("chat_template") for loaded in (before, after))
        source = before.under_names(source)
        if changed and isinstance(copy, str) and copy != now and not (now == old and copy == source):
            yield f"{name}: the copy of the chat template is not the new one"
        if not changed and copy != source:
            yield f"{name}: the copy of the chat template is not the source's"


def check_same_ids(before: LoadedTokenizer, after: LoadedTokenizer) -> Iterator[str]:
    """Yield each template that gives a conversation other ids than before, although only tokens in it were renamed."""
    was, now = _named(before.tokenizer.chat_template), _named(after.tokenizer.chat_template)
    for name, text in _named(before.chat_template).items():
        if now.get(name) != text:
            continue
        for turns in (_TURNS, (_SYSTEM, *_TURNS), _in_parts(_TURNS)):
            (old, _), (new, _) = _rendered(before, was[name], turns), _rendered(after, text, turns)
            if before.encode([old]) != after.encode([new]):
                yield f"{_which(name)} gives a conversation other ids than under the old names: rendered, it is {_short(new)}"
                break


def template_notes(before: LoadedTokenizer, after: LoadedTokenizer) -> tuple[str, ...]:
    """A template of the source's own that holds no Jinja, which is kept; it is read and not rendered."""
    kept = set(_named(before.chat_template).items()) & set(_named(after.tokenizer.chat_template).items())
    return tuple(
        f"{_which(name)} is the source's and holds no Jinja: {_short(text)}"
        for name, text in sorted(kept)
        if not holds_jinja(text)
    )


def _named(template: object) -> Mapping[str, str]:
    """The templates by name; the only one has no name."""
    if isinstance(template, dict):
        return {str(name): str(text) for name, text in template.items()}
    return {"": str(template)} if template else {}


def _lost_messages(after: LoadedTokenizer, name: str, text: str) -> Iterator[str]:
    """Yield a sentence where no spelling of a conversation is rendered with what its messages say."""
    if not holds_jinja(text):
        yield (
            f"{_which(name)} holds no Jinja, so that every conversation becomes {_short(text)}; where that is a file's"
            " name, write chat_template: {file: ...}"
        )
        return
    found = [_rendered(after, text, turns) for turns in (_TURNS, _in_parts(_TURNS))]
    if not any(_says(shown, _TURNS) for shown, _ in found):
        shown, why = next((item for item in found if not item[1]), found[0])
        what = f"fails: {why}" if why else f"gives {_short(shown)}"
        yield f"{_which(name)} loses the messages: a question and its answer, rendered, {what}"
        return
    for turns in ((_SYSTEM, *_TURNS), _in_parts((_SYSTEM, *_TURNS))):
        shown, why = _rendered(after, text, turns)
        if not why and _says(shown, (_SYSTEM,)) and not _says(shown, _TURNS):
            yield f"{_which(name)} loses the messages behind a system message: rendered, it gives {_short(shown)}"
            return


def _rendered(after: LoadedTokenizer, text: str, turns: tuple[Mapping[str, Any], ...]) -> tuple[str, str]:
    """The conversation as text, and why it could not be rendered, one of them empty."""
    try:
        with processor_time(RENDERING):
            shown = after.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], chat_template=text, tokenize=False
            )
    except Exception as error:  # noqa: BLE001 - whatever a template raises says that it does not take these messages
        return "", f"{type(error).__name__}: {printable(str(error).partition(chr(10))[0])}"
    return str(shown), ""


def _in_parts(turns: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
    """The same messages as models with images take them: each content is a list of parts."""
    return tuple({**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns)


def _says(shown: str, turns: tuple[Mapping[str, Any], ...]) -> bool:
    return all(str(turn["content"]) in shown for turn in turns)


def _which(name: str) -> str:
    return f"the chat template {printable(name)!r}" if name else "the chat template"


def _short(text: str) -> str:
    shown = printable(text)
    return repr(shown if len(shown) <= 60 else f"{shown[:57]}...")
