"""`inspect`: what a checkpoint is, what its vocabulary looks like, and where its special tokens disagree."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.dimensions import Dimensions, dimensions_of
from graftkit.architecture.missing_rows import missing_rows
from graftkit.architecture.module_groups import ModuleGroup, module_groups
from graftkit.architecture.parameters import text_value
from graftkit.architecture.vocabulary import NO_VOCABULARY, VocabularyTensor, vocabulary_of
from graftkit.block_ranking import MOST_CHARACTERS, rank_blocks
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.examples import first_texts
from graftkit.checkpoint.quantization import quantization_method
from graftkit.checkpoint.reading import read_rows, row_chunks
from graftkit.checkpoint.tensors import Stored
from graftkit.checkpoint.tokenizer import (
    NO_TOKENIZER,
    TokenizerFiles,
    class_note,
    conversation_notes,
    read_tokenizer,
    template_notes,
)
from graftkit.checkpoint.tokenizer.template_notes import templates
from graftkit.checkpoint.weights_on_hub import bytes_on_hub, is_on_hub
from graftkit.errors import InputRejected, few, plural, printable
from graftkit.initializers.never_trained import Reason, initial_rows, untrained_rows
from graftkit.initializers.statistics import TableStatistics, table_statistics
from graftkit.running.block_costs import BlockCosts
from graftkit.verification.structural import not_finite
from graftkit.verification.value_head import value_head_findings

#: What transformers writes as model_max_length where there is no limit is far beyond this.
NO_LIMIT = 10**12

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class NeverTrained:
    """A token whose row in a table was never trained, by ``reason``: the row is zero, has next to no norm, or equals an earlier one.

    ``initial`` is a special token's row that has the norm and direction of values as the config initialises them.
    """

    id: int
    token: str
    reason: Reason
    norm: float


@dataclass(frozen=True, slots=True)
class TableInspection:
    """One vocabulary tensor: its role, and which of its tokenized rows were never trained; None where its values lie on the hub."""

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    zero: int | None
    near_zero: int | None
    duplicates: int | None
    live: int | None
    never_trained: tuple[NeverTrained, ...] = ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `graftkit inspect` prints. ``nonfinite`` is None when it was not asked for.

    ``input`` is what the class is fed in the first place; where that is no token ids, there may be no rows and no tokens.
    ``modules`` is what adapters can target. ``chat_templates`` gives the number of characters of each by its name, which is
    empty for the only one; ``model_max_length`` the number of tokens after which the tokenizer says it cuts. ``bytes_on_hub`` is
    what was not downloaded of the weights, and not looked at. ``value_head`` describes the head in
    value_head.safetensors; empty where there is none. ``blocks`` is what dropping each block costs, None when it was not asked for.
    """

    name: str
    architecture: str
    model_type: str
    parameters: int
    nbytes: int
    dtypes: Mapping[str, int]
    shards: int
    rows: int
    tokens: int
    padding_rows: int
    tied: bool
    config_paths: tuple[str, ...]
    tables: tuple[TableInspection, ...]
    special: Mapping[str, str]
    findings: tuple[str, ...]
    nonfinite: tuple[str, ...] | None
    input: str
    dimensions: Dimensions
    modules: tuple[ModuleGroup, ...]
    chat_templates: Mapping[str, int]
    model_max_length: int | None
    bytes_on_hub: int = 0
    value_head: str = ""
    blocks: BlockCosts | None = None


def inspect(
    model: str | os.PathLike[str], *, revision: str | None = None, nonfinite: bool = False,
    texts: str | os.PathLike[str] | None = None, progress: Callable[[str, float], None] | None = None,
) -> Inspection:  # fmt: skip
    """Inspect a checkpoint; reads the vocabulary's tables, and every tensor when ``nonfinite`` is asked for.

    Of weights that lie on the hub alone no more than headers is read, but where ``nonfinite`` is asked for, or ``texts``: a file of
    texts (.txt, .jsonl, .csv, .parquet) on which the cost of dropping each block is measured.

    Raises:
        InputRejected: it cannot be opened, its vocabulary cannot be found, or it cannot be run where ``texts`` are given.
        RecipeError: the file of texts cannot be read.
    """
    given = None if texts is None else first_texts(Path(texts), MOST_CHARACTERS)
    checkpoint = Checkpoint.open(model, revision=revision, weights=nonfinite or given is not None)
    structure = account(checkpoint)
    vocabulary = vocabulary_of(checkpoint, structure)
    bare = vocabulary is NO_VOCABULARY and "tokenizer.json" not in checkpoint.documents
    tokenizer = NO_TOKENIZER if bare else read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    std = _initial_std(structure)
    dtypes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
    return Inspection(
        name=checkpoint.name,
        architecture=structure.skeleton.architecture,
        model_type=str(checkpoint.config["model_type"]),
        parameters=_parameters(checkpoint, structure),
        nbytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        dtypes=dtypes,
        shards=len(checkpoint.shards),
        rows=vocabulary.rows,
        tokens=tokenizer.size,
        padding_rows=max(vocabulary.rows - tokenizer.size, 0),
        tied=vocabulary.tied,
        config_paths=tuple(".".join(path) for path in vocabulary.config_paths),
        tables=tuple(
            _table(checkpoint, item, tokenizer, min(tokenizer.size, vocabulary.rows), std)
            for item in vocabulary.tensors
        ),
        special=dict(tokenizer.special),
        findings=tuple(_all_findings(checkpoint, structure, None if bare else tokenizer, vocabulary.rows)),
        nonfinite=tuple(not_finite(checkpoint.all_tensors)) if nonfinite else None,
        input=structure.skeleton.model.main_input_name,
        dimensions=dimensions_of(structure.skeleton),
        modules=module_groups(structure.skeleton),
        chat_templates={name: len(text) for name, text in templates(checkpoint.documents).items()},
        model_max_length=_longest(checkpoint),
        bytes_on_hub=bytes_on_hub(checkpoint),
        value_head=", ".join(f"{name} {t.dtype} {list(t.shape)}" for name, t in checkpoint.value_head.items()),
        blocks=None if given is None else rank_blocks(checkpoint, structure, given, progress),
    )


def _longest(checkpoint: Checkpoint) -> int | None:
    """The tokenizer's own limit; None where it has none, for which transformers writes a number of thirty digits."""
    said = checkpoint.documents.get("tokenizer_config.json")
    length = said.get("model_max_length") if isinstance(said, dict) else None
    return int(length) if isinstance(length, int | float) and length < NO_LIMIT else None


def _parameters(checkpoint: Checkpoint, structure: Structure) -> int:
    """How many values the weights have; of packed ones, how many there are once they are unpacked."""
    plain = (tensor.shape for name, tensor in checkpoint.tensors.items() if name not in structure.packed.tensors)
    packed = (structure.skeleton.shapes[name] for name in structure.packed.weights)
    return sum(math.prod(shape) for shape in (*plain, *packed))


def _quantized(checkpoint: Checkpoint, structure: Structure) -> Iterator[str]:
    if structure.packed.tensors:
        method = printable(quantization_method(checkpoint.config))
        count = plural(len(structure.packed.tensors), "tensor")
        yield f"{plural(len(structure.packed.weights), 'weight')} packed by {method}, in {count}"


def _unknown(structure: Structure) -> Iterator[str]:
    if structure.unknown:
        count = plural(len(structure.unknown), "tensor")
        yield f"{count} of no class of this config: {few(structure.unknown)}; unknown_tensors: carry takes them over"


def _all_findings(
    checkpoint: Checkpoint, structure: Structure, tokenizer: TokenizerFiles | None, rows: int
) -> Iterator[str]:
    yield from _quantized(checkpoint, structure)
    yield from _unknown(structure)
    yield from value_head_findings(checkpoint)
    if tokenizer is not None:
        yield from _findings(checkpoint, tokenizer, rows)


def _findings(checkpoint: Checkpoint, tokenizer: TokenizerFiles, rows: int) -> Iterator[str]:
    if past := missing_rows(tokenizer, rows):
        yield past
    yield from special_token_findings(checkpoint.documents, tokenizer)
    yield from template_notes(checkpoint.documents, tokenizer)
    yield from conversation_notes(checkpoint.documents, tokenizer)
    yield from class_note(checkpoint.documents)


def _table(
    checkpoint: Checkpoint, item: VocabularyTensor, tokenizer: TokenizerFiles, tokens: int, std: float | None
) -> TableInspection:
    tensor = checkpoint.tensors[item.name]
    if not isinstance(tensor, Stored):
        raise InputRejected(f"tensor {item.name!r} is not stored")
    found, named = None, tuple[NeverTrained, ...]()
    if is_on_hub(tensor):
        return TableInspection(item.name, item.role, tensor.dtype, tensor.shape, None, None, None, None)
    if math.prod(tensor.shape) > tensor.shape[item.axis]:
        found = table_statistics(lambda: row_chunks(tensor, item.axis, tokens), tokens)
        named = tuple(_never_trained(checkpoint, item, found, tokenizer, std))
    return TableInspection(item.name, item.role, tensor.dtype, tensor.shape, *_counts(found, tokens), named)


def _never_trained(
    checkpoint: Checkpoint,
    item: VocabularyTensor,
    found: TableStatistics,
    tokenizer: TokenizerFiles,
    std: float | None,
) -> Iterator[NeverTrained]:
    tensor = checkpoint.tensors[item.name]
    reasons = dict(untrained_rows(found))
    special = [e.index for e in tokenizer.added if e.special and e.index < found.size]
    if std:
        read = lambda index: read_rows(tensor, item.axis, index, index + 1)[0]  # noqa: E731
        reasons |= dict.fromkeys(initial_rows(found, special, read, std), "initial")
    for index in sorted(reasons):
        if (token := tokenizer.token_of(index)) is not None:
            yield NeverTrained(index, token, reasons[index], float(found.norms[index]))


def _initial_std(structure: Structure) -> float | None:
    """The standard deviation by which the config initialises embeddings, None where it names none."""
    std = text_value(structure.skeleton, "initializer_range", "init_std")
    return float(std) if isinstance(std, int | float) and std > 0 else None


def _counts(found: TableStatistics | None, tokens: int) -> tuple[int, int, int, int]:
    if found is None:
        return 0, 0, 0, tokens
    return found.zero, found.small, found.duplicates, tokens - found.zero - found.small - found.duplicates


def special_token_findings(documents: Mapping[str, Any], tokenizer: TokenizerFiles) -> Iterator[str]:
    """Yield a sentence for each disagreement about special tokens between tokenizer, config and generation_config."""
    special = {role: tokenizer.id_of(content) for role, content in tokenizer.special.items()}
    if special.get("pad_token") is None:
        yield "the tokenizer has no pad token: batches cannot be padded; give it one with roles: {pad_token: ...}"
    elif special["pad_token"] == special.get("eos_token"):
        yield "pad_token is eos_token: a collator that masks padding hides the end of text from the loss"
    for content, index in ((tokenizer.special[role], index) for role, index in special.items()):
        if index is None:
            yield f"the tokenizer names {content!r} as a special token, but has no id for it"
    for file, place, values in _id_places(documents):
        for role in ROLES:
            found = values.get(f"{role}_id")
            wanted = special.get(role)
            if found is None or wanted is None:
                continue
            ids = found if isinstance(found, list) else [found]
            if wanted not in ids:
                yield f"{file}: {place}{role}_id is {found}, the tokenizer's {role} is id {wanted}"


def _id_places(documents: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for file in ("config.json", "generation_config.json"):
        values = documents.get(file, {})
        if not isinstance(values, dict):
            raise InputRejected(f"{file}: is not a JSON object")
        yield file, "", values
        for key, inner in values.items():
            if key in ("text_config", "decoder", "encoder") and isinstance(inner, dict):
                yield file, f"{key}.", inner
