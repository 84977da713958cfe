"""Token rows of an adapter that belong to the ids of another vocabulary than the base's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from graftkit.architecture.embeddings import INPUT, OUTPUT
from graftkit.architecture.peft.edits import Edit, TokenRows
from graftkit.architecture.peft.source_class import named_folder
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import NO_TOKENIZER, TokenizerFiles, find_tokenizer
from graftkit.errors import GraftkitError, InputRejected, printable
from graftkit.operations.adapters.tokenizer_beside import read_beside


def refuse_other_ids(
    adapter: Adapter, folder: Path, checkpoint: Checkpoint, shown: str, edits: Iterable[Edit] | None
) -> None:
    """Refuse rows of tokens that have other ids in the vocabulary that the adapter was trained with.

    That vocabulary is the tokenizer beside the adapter in ``folder``, else that of the base that its config names, where it is on
    this machine. Where added tokens alone have other ids, that is said elsewhere. ``edits`` are None where the adapter does not fit
    the base at all.

    Raises:
        InputRejected: pieces of that vocabulary are gone from the one of ``checkpoint``, or have other ids there.
    """
    if edits is not None and not _bring_rows(edits, checkpoint):
        return
    theirs, ours = _vocabulary_of(adapter, folder), find_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    moved = next((token for token, index in theirs.ids.items() if ours.ids.get(token, index) != index), None)
    pieces = (theirs.tokens[index] for index in range(theirs.model_size) if index in theirs.tokens)
    if moved is not None and any(ours.ids.get(token) != theirs.ids[token] for token in pieces):
        raise InputRejected(
            f"{shown}: brings rows by the ids of another vocabulary: {printable(moved)!r} is id {theirs.ids[moved]} there and"
            f" {ours.ids[moved]} in {printable(checkpoint.name)}; merge it into the base that it was trained on, and trim that"
        )


def _bring_rows(edits: Iterable[Edit], checkpoint: Checkpoint) -> bool:
    """Whether one of them changes rows of a table that is indexed by the vocabulary."""
    skeleton = build_skeleton(checkpoint.config)
    tables = skeleton.weight_names(INPUT) | skeleton.weight_names(OUTPUT)
    return any(isinstance(edit, TokenRows) or edit.weight in tables for edit in edits)


def _vocabulary_of(adapter: Adapter, folder: Path) -> TokenizerFiles:
    """The tokenizer that the adapter was trained with; :data:`NO_TOKENIZER` where none can be found."""
    try:
        if (beside := read_beside(folder)) is not None:
            return beside
        named, revision = (adapter.config.get(name) for name in ("base_model_name_or_path", "revision"))
        base = named_folder(named, revision) if isinstance(named, str) and named else None
        return NO_TOKENIZER if base is None else find_tokenizer(Checkpoint.open(str(base)).documents)
    except GraftkitError:
        return NO_TOKENIZER
