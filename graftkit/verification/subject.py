"""What checks look at: a source, what was made of it, and how the two correspond."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.verification.promises import Promise, Scope

if TYPE_CHECKING:
    from graftkit.verification.kl_promise import KLPromise

#: ``(what is being done, share done)``.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Content of each new token -> its id; those that have to be special; and whether the chat template is another on purpose."""

    ids: Mapping[str, int]
    special: frozenset[str]
    chat_template_changed: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything that a check may ask for. Paths are directories.

    Attributes:
        source: the checkpoint that all started from.
        result: the base that was written, or the source where that stays as it is.
        adapter: the adapter that was written, if there is one.
        promise: what is promised of the result.
        scope: what of the outputs is compared.
        correspondence: which index of the result is which of the source.
        later: the same from behind the operation whose own check runs.
        tokens: how the tokenizer changed, None where it did not.
        kl: returns the bound on the KL that new ids promise, None where none is promised.
        wanted: names of the checks that are asked for beside those that always run.
        outputs: whether models are loaded and run.
        seed: of whatever a check samples.
        device: where lens and signal run.
        paged: whether parameters are read from the files as forwards ask for them; None lets the free memory decide.
        progress: called with what is being done and the share of it that is.
    """

    source: Path
    result: Path
    promise: Promise
    adapter: Path | None = None
    scope: Scope = Scope.EVERYTHING
    correspondence: Correspondence = IDENTITY
    later: Correspondence = IDENTITY
    tokens: NewTokens | None = None
    kl: Callable[[], KLPromise | None] = field(default=lambda: None)
    wanted: frozenset[str] = frozenset()
    outputs: bool = True
    seed: int = 0
    device: str | None = None
    paged: bool | None = None
    progress: Progress | None = None

    @property
    def base_changed(self) -> bool:
        """Whether a base was written."""
        return self.result != self.source
