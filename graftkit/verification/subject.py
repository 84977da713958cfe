"""What checks look at: a source, what was made of it, and how the two correspond."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.positions import NAMES
from graftkit.checkpoint.adapter import AdapterPlace
from graftkit.running.place import Place
from graftkit.verification.promises import Promise, Scope

if TYPE_CHECKING:
    from graftkit.architecture.index_map import IndexMap
    from graftkit.checkpoint.tokenizer import Renamed
    from graftkit.running.split.crew import Crew
    from graftkit.verification.adapters.prepared import PreparedAdapter
    from graftkit.verification.digests import BaseDigests
    from graftkit.verification.kl_promise import KLPromise
    from graftkit.verification.pair import Pair

#: ``(what is being done, share done)``.
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A tokenizer in another ``folder`` that took the place of one; ``ids`` say where its ids went since, None where they stayed."""

    folder: Path
    ids: IndexMap | None = None

    def then(self, ids: IndexMap) -> Replaced:
        """The same where its ids went on."""
        return Replaced(self.folder, ids if self.ids is None else self.ids.then(ids))


@dataclass(frozen=True, slots=True)
class NewTokens:
    """How a tokenizer changed on purpose.

    ``ids`` is content of each new token -> its id, ``special`` those that have to be special. ``chat_template_changed`` says that the
    chat template is another one, ``eos_may_pad`` that the pad token may be the end-of-sequence token. ``renamed`` gives by its old
    name each token that has another one, ``gone`` the places in documents that were taken away, such as ``config.json: text_config``.
    ``replaced`` is the tokenizer that took the place of the source's, with which the result's is compared. ``learned`` is the id of
    each new piece of the tokenizer's model, which is no added token and is not among ``ids``.
    ``longer`` says that the model takes sequences of another length, and so may the tokenizer.
    """

    ids: Mapping[str, int]
    special: frozenset[str]
    chat_template_changed: bool
    eos_may_pad: bool = False
    renamed: Mapping[str, Renamed] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    replaced: Replaced | None = None
    learned: Mapping[str, int] = field(default_factory=dict)
    longer: bool = False
    entered: frozenset[str] = frozenset()


def places(changes: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Documents with the places in them that changed, each as one text; a document that changed as a whole has no place."""
    return frozenset(f"{document}: {place}" if place else document for document, place in changes)


def is_longer(changes: Iterable[tuple[str, str]]) -> bool:
    """Whether the number of positions is among these changes of documents and places."""
    return any(document == "config.json" and place.rpartition(".")[2] in NAMES for document, place in changes)


#: What config.json calls the dtype of a model, now and in older versions of transformers.
DTYPE_FIELDS = ("dtype", "torch_dtype")


def is_recast(source: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether two config.json name different dtypes."""
    old, new = (next((config[key] for key in DTYPE_FIELDS if key in config), None) for config in (source, result))
    return bool(old != new)


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything that a check may ask for. Paths are directories; a model in memory is one of those that lie elsewhere.

    Attributes:
        source: the checkpoint that all started from.
        result: the base that was written, or the source where that stays as it is.
        adapter: the adapter that was written, if there is one.
        promise: what is promised of the result, None where nothing is.
        scope: what of the outputs is compared.
        correspondence: which index of the result is which of the source.
        added: what the loader calls tensors that were added on purpose and that the result's class leaves out.
        recast: whether the result is stored in another dtype on purpose, so that the two are compared in the source's.
        later: the same from behind the operation whose own check runs; and ``later_scope`` what of the outputs is then left of it.
        changed_later: names on disk of the tensors that operations behind that one made, replaced or dropped.
        tokens: how the tokenizer changed, None where it did not.
        kl: returns the bound on the KL that new ids promise, None where none is promised.
        wanted: names of the checks that are asked for beside those that always run.
        left_out: names of the checks that are not run.
        not_run: why no model is loaded and run; empty where models are.
        pair: source and result as opened, where no recipe says how one became the other.
        prepared: an adapter that somebody has prepared, with what its report and its config say of it.
        digests: returns the digests of the result, with or without its weights, where they may have been made already.
        seed: of whatever a check samples.
        device: where lens and signal run.
        paged: whether parameters are read from the files as forwards ask for them; None lets the free memory decide.
        progress: called with what is being done and the share of it that is.
        crew: the processes that run the models of a comparison together; None where this one is alone.
    """

    source: Place
    result: Place
    promise: Promise | None = None
    adapter: AdapterPlace | None = None
    scope: Scope = Scope.EVERYTHING
    correspondence: Correspondence = IDENTITY
    added: frozenset[str] = frozenset()
    recast: bool = False
    later: Correspondence = IDENTITY
    later_scope: Scope = Scope.EVERYTHING
    changed_later: frozenset[str] = frozenset()
    tokens: NewTokens | None = None
    kl: Callable[[], KLPromise | None] = field(default=lambda: None)
    wanted: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    not_run: str = ""
    pair: Pair | None = None
    prepared: PreparedAdapter | None = None
    digests: Callable[[bool], BaseDigests] | None = None
    seed: int = 0
    device: str | None = None
    paged: bool | None = None
    progress: Progress | None = None
    crew: Crew | None = None

    @property
    def runs(self) -> bool:
        """Whether models are loaded and run."""
        return not self.not_run

    @property
    def base_changed(self) -> bool:
        """Whether there is a result beside the source; two checkpoints may be one folder, and are compared all the same."""
        return self.result != self.source or self.pair is not None
