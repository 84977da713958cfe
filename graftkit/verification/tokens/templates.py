"""A chat template is the source's, or it is new and says what the messages say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.checkpoint.tokenizer.conversation import SYSTEM, TURNS, Render, in_parts, lost_messages, rendered, short
from graftkit.checkpoint.tokenizer.template_bounds import why_unbounded
from graftkit.errors import printable
from graftkit.recipe.chat_template import holds_jinja

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from graftkit.running.loaded_tokenizer import LoadedTokenizer

#: JSON documents that may hold the chat template once more, for servers that read only that.
TEMPLATE_COPIES = ("tokenizer_config.json", "chat_template.json", "processor_config.json")


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
        if why := why_unbounded(text):
            yield f"{_which(name)} {why}"
            continue
        for turns in (TURNS, (SYSTEM, *TURNS), in_parts(TURNS)):
            (old, _), (new, _) = rendered(_renders(before, was[name]), turns), rendered(_renders(after, text), turns)
            if before.encode([old]) != after.encode([new]):
                yield f"{_which(name)} gives a conversation other ids than under the old names: rendered, it is {short(new)}"
                break


def template_notes(before: LoadedTokenizer, after: LoadedTokenizer) -> tuple[str, ...]:
    """A template of the source's own that holds no Jinja, which is kept; it is read and not rendered."""
    kept = set(_named(before.chat_template).items()) & set(_named(after.tokenizer.chat_template).items())
    return tuple(
        f"{_which(name)} is the source's and holds no Jinja: {short(text)}"
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
            f"{_which(name)} holds no Jinja, so that every conversation becomes {short(text)}; where that is a file's"
            " name, write chat_template: {file: ...}"
        )
        return
    why = why_unbounded(text)
    yield from (f"{_which(name)} {how}" for how in ([why] if why else lost_messages(_renders(after, text))))


def _renders(loaded: LoadedTokenizer, text: str) -> Render:
    return lambda turns: str(loaded.tokenizer.apply_chat_template(turns, chat_template=text, tokenize=False))


def _which(name: str) -> str:
    return f"the chat template {printable(name)!r}" if name else "the chat template"
