"""What somebody who changes a tokenizer should know, although nothing is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.files import is_slow, read_tokenizer
from graftkit.checkpoint.tokenizer.roles import frame_tokens, renamed_frame
from graftkit.checkpoint.tokenizer.vocabulary import object_of
from graftkit.errors import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping


def tokenizer_notes(
    documents: Mapping[str, Any], roles: Mapping[str, str], *, carried: Collection[str] = ()
) -> Iterator[str]:
    """Yield a sentence for each consequence of giving ``roles`` that the files of ``documents`` (the source's) have.

    Named are post-processors that follow a role or do not, ids that generation forces, and slow tokenizer files that
    will not know the new tokens.
    """
    files = read_tokenizer(documents)
    renamed = renamed_frame(files.special, {**files.special, **roles})
    used = frame_tokens(files.document.get("post_processor"))
    for role, content in roles.items():
        before = files.special.get(role)
        if before == content or before not in used:
            continue
        if before in renamed:
            yield f"the post-processor puts {printable(content)!r} where it put {printable(before)!r}"
        else:
            yield f"the post-processor still puts {printable(before)!r}: it plays another role beside {role}"
    for name in ("config.json", "generation_config.json"):
        document = object_of(documents, name)
        for role in ("bos_token", "eos_token"):
            forced = document.get(f"forced_{role}_id")
            if role in roles and forced is not None and forced != files.ids.get(roles[role]):
                yield f"{name}: forced_{role}_id still names id {printable(forced)}"
    yield from slow_notes([*documents, *carried])


def slow_notes(names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence where slow tokenizer files are among the files of a checkpoint."""
    slow = sorted(filter(is_slow, set(names)))
    if slow:
        shown = ", ".join(map(printable, slow))
        yield f"{shown}: kept unchanged; whatever reads nothing else does not know the new tokens"
