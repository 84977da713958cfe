"""What config.json and the tokenizer say of a new head: class, labels, problem type, pad token."""

from __future__ import annotations

import contextlib
from typing import Any

from graftkit.architecture.skeleton import build_config
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import add_tokens, read_tokenizer
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.recipe import ReplaceHead

#: What a config says of labels: all of it belongs to the head.
LABEL_KEYS = ("id2label", "label2id", "num_labels", "problem_type")

HOW = "add one with extend_vocab (roles: {pad_token: <|pad|>}) and name it as pad_token here"


def head_config(spec: ReplaceHead, config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """config.json with the new class and labels. The three ways to say the number of labels never differ."""
    kept = {key: value for key, value in config.items() if key not in LABEL_KEYS}
    kept["architectures"] = [architecture]
    if spec.count is None:
        return kept
    names = spec.labels or tuple(f"LABEL_{index}" for index in range(spec.count))
    kept["id2label"] = {str(index): name for index, name in enumerate(names)}
    kept["label2id"] = {name: index for index, name in enumerate(names)}
    kept["num_labels"] = spec.count
    if spec.problem is not None:
        kept["problem_type"] = spec.problem
    return kept


def with_pad_token(spec: ReplaceHead, checkpoint: Checkpoint, *, needed: bool) -> Checkpoint:
    """The checkpoint with ``pad_token`` in tokenizer and configs.

    Raises:
        RecipeError: the tokenizer does not have it, or one is ``needed`` and none is certain.
    """
    if spec.pad_token is None:
        if needed:
            _check_pad_token(checkpoint)
        return checkpoint
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    if tokenizer.id_of(spec.pad_token) is None:
        raise RecipeError(f"the tokenizer has no token {printable(spec.pad_token)!r}; {HOW}", field="pad_token")
    documents, _ = add_tokens(checkpoint.documents, [], {"pad_token": spec.pad_token})
    return checkpoint.with_documents(documents) if documents else checkpoint


def check_padding_side(checkpoint: Checkpoint, architecture: str) -> None:
    """Refuse padding on the right: heads that read a batch's last position need left padding.

    Raises:
        InputRejected: it pads on the right.
    """
    import transformers

    said = checkpoint.documents.get("tokenizer_config.json", {})
    side = said.get("padding_side")
    if side is None:
        with contextlib.suppress(AttributeError, ImportError):  # a class whose library is not installed says nothing
            side = getattr(transformers, str(said.get("tokenizer_class"))).padding_side
    if side != "left":
        raise InputRejected(
            f"{architecture}: its head reads the last position, which is padding where the tokenizer pads on the right;"
            ' write "padding_side": "left" into tokenizer_config.json'
        )


def _check_pad_token(checkpoint: Checkpoint) -> None:
    """Without a pad token in the recipe, config and tokenizer must agree on one that means nothing else."""
    text = build_config(checkpoint.config).get_text_config()
    index = getattr(text, "pad_token_id", None)
    why = "the head looks for the pad token to find the last token of a text, and"
    if index is None:
        raise RecipeError(f"{why} config.json names none; {HOW}")
    eos = getattr(text, "eos_token_id", None)
    if index in (eos if isinstance(eos, list) else [eos]):
        raise RecipeError(f"{why} config.json's is the end-of-sequence token, which also ends texts; {HOW}")
    content = read_tokenizer(checkpoint.documents, carried=checkpoint.carried).special.get("pad_token")
    found = read_tokenizer(checkpoint.documents, carried=checkpoint.carried).ids.get(content or "")
    if found != index:
        raise RecipeError(
            f"{why} the tokenizer pads with {printable(content)!r} (id {found}),"
            f" config.json says id {index}; name the right one as pad_token"
        )
