"""Texts through a model with a classification head, in batches of similar length: what comes out for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from graftkit.architecture.capabilities import parameters_of
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import encode_document, read_document
from graftkit.checkpoint.tokenizer.bounds import check_bounds, tokenizers_faults
from graftkit.checkpoint.tokenizer.vocabulary import object_of
from graftkit.errors import InputRejected, printable
from graftkit.running.forward import largest_position

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Item = TypeVar("Item")

#: Texts that are held and sorted by length at a time, and tokens of one forward.
WINDOW, BATCH_TOKENS = 1024, 4096


def write_tokenizer(checkpoint: Checkpoint, directory: Path) -> None:
    """Put the documents of a checkpoint, and links to its other files, into ``directory``, for AutoTokenizer to load."""
    for name, value in checkpoint.documents.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(encode_document(value))
    for name in checkpoint.carried:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).symlink_to(checkpoint.path_of(name))


def load_tokenizer(directory: Path) -> Any:
    """What ``AutoTokenizer.from_pretrained(directory)`` gives, without code of the checkpoint, and within bounds.

    Raises:
        InputRejected: transformers or the tokenizers library cannot load it.
    """
    from transformers import AutoTokenizer

    path = directory / "tokenizer.json"
    cannot = f"{printable(directory)}: AutoTokenizer cannot load the tokenizer"
    try:
        if path.is_file():
            check_bounds(object_of({path.name: read_document(directory, path.name)}, path.name))
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except InputRejected as error:
        raise InputRejected(f"{cannot}: {error}") from error
    except BaseException as error:  # transformers raises all kinds, and a panic of tokenizers is no Exception
        reason = printable(str(error).strip().partition("\n")[0][:300])
        raise InputRejected(f"{cannot}: {type(error).__name__}: {reason}") from error


def longest(model: PreTrainedModel, tokenizer: Any, asked: int | None) -> int:
    """Tokens after which a text is cut: what was asked for, within what tokenizer and model take."""
    limits = (asked, tokenizer.model_max_length, largest_position(model))
    return min(limit for limit in limits if limit is not None)


def outputs_of_texts(
    model: PreTrainedModel, tokenizer: Any, items: Iterable[tuple[Item, str]], max_length: int
) -> Iterator[tuple[Item, Tensor]]:
    """Yield each item with the logits of its text, float64 ``(labels,)``; the order within a window is by length.

    A text is padded as the tokenizer pads; without a pad token each goes alone.
    """
    yield from ((item, logits) for item, logits, _ in _forwards(model, tokenizer, items, max_length, split=False))


def outputs_of_words(
    model: PreTrainedModel, tokenizer: Any, items: Iterable[tuple[Item, Sequence[str]]], max_length: int
) -> Iterator[tuple[Item, tuple[list[int], Tensor]]]:
    """Yield each item with the places of its words that have a token, and the logits at the first token of each.

    Words behind ``max_length`` have none. *Shape:* float64 ``(words, labels)``. For the rest as :func:`outputs_of_texts`.
    """
    spaced = glues_words(tokenizer)
    given = ((item, [f" {word}" for word in words] if spaced else list(words)) for item, words in items)
    for item, logits, words in _forwards(model, tokenizer, given, max_length, split=True):
        first: dict[int, int] = {}
        for place, word in enumerate(words):
            if word is not None:
                first.setdefault(word, place)
        yield item, (list(first), logits[list(first.values())])


def glues_words(tokenizer: Any) -> bool:
    """Whether words that are given one by one are not read as they are in a text, since nothing stands between them.

    Byte-level tokenizers do so; what trainers ask of them then, ``add_prefix_space``, is a space before each word.
    """
    ids = tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return bool(ids != tokenizer("a a", add_special_tokens=False)["input_ids"])


def _forwards(
    model: PreTrainedModel, tokenizer: Any, items: Iterable[tuple[Item, Any]], max_length: int, *, split: bool
) -> Iterator[tuple[Item, Tensor, Any]]:
    """Yield each item with its logits, and with the word of each token where words are given one by one (``split``).

    Raises:
        InputRejected: the tokenizer fails on a text.
    """
    import torch

    stream = iter(items)
    while window := list(islice(stream, WINDOW)):
        texts = [text for _, text in window]
        with tokenizers_faults("tokenizer files"):
            encoded = tokenizer(texts, truncation=True, max_length=max_length, is_split_into_words=split)["input_ids"]
        order = sorted(range(len(window)), key=lambda index: len(encoded[index]))
        for batch in _batches(order, encoded, alone=tokenizer.pad_token is None):
            inputs = tokenizer(
                [texts[index] for index in batch], is_split_into_words=split,
                truncation=True, max_length=max_length, padding=len(batch) > 1, return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                logits = model(**known_inputs(model, inputs)).logits.double()
            for place, index in enumerate(batch):
                yield window[index][0], logits[place], inputs.word_ids(place) if split else None


def _batches(order: list[int], encoded: list[list[int]], *, alone: bool) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in order:  # ascending, so the one that comes is the longest of its batch
        if batch and (alone or (len(batch) + 1) * len(encoded[index]) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def known_inputs(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a tokenizer's ``inputs`` that the model's forward takes."""
    parameters = parameters_of(model)
    return {name: value for name, value in inputs.items() if name in parameters}
