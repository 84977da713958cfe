"""extract_submodel: a part of a model as a checkpoint of its own, its bytes and its hidden states those of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.embeddings import OUTPUT
from graftkit.architecture.part import Part, find_part
from graftkit.architecture.part_config import part_document, part_skeleton
from graftkit.architecture.part_names import disk_names
from graftkit.architecture.skeleton import Skeleton, build_skeleton
from graftkit.architecture.vocabulary import takes_ids
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import TOKENIZER
from graftkit.checkpoint.tensors import Computed
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations.base import Context, Outcome, VocabularyOutcome
from graftkit.operations.parts.converted import converted_tensors
from graftkit.operations.parts.documents import TEMPLATE, part_documents
from graftkit.recipe.extract_submodel import ExtractSubmodel
from graftkit.recipe_file.wording import did_you_mean, shown
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope

WHOLE_NOTE = (
    "outputs of the whole on texts are compared; where it numbers positions in its own way they differ by roundings:"
    " compare: part takes its module alone"
)


def extract_submodel(spec: ExtractSubmodel, checkpoint: Checkpoint, context: Context) -> Outcome:  # noqa: ARG001 - nothing is drawn
    """Keep the tensors of the part under its names, with its config and the files that it needs.

    Raises:
        RecipeError: there is no such class, or the checkpoint is of that class already.
        InputRejected: the class is no part of the checkpoint's, or has tensors that the checkpoint lacks.
    """
    structure = account(checkpoint)
    whole = structure.skeleton
    _check_class(spec, whole)
    first = part_skeleton(checkpoint.config, spec.architecture)
    found = find_part(whole, first)
    config = _with_ties(part_document(checkpoint.config, first), first, whole, found)
    part = build_skeleton(config)
    names = disk_names(structure, _names_of_stored(structure, found, part), part)
    made = _made(checkpoint, structure, found, names, part)
    _check_whole(checkpoint, names, made, part, whole)
    dropped = [name for name in checkpoint.all_tensors if name not in names]
    own_config = type(part.model.config) is not type(whole.model.config)
    documents = part_documents(checkpoint, config, part, own_config=own_config)
    result = checkpoint.with_tensors({**dict.fromkeys(checkpoint.tensors.keys() & dropped), **made})
    result = result.with_names({disk: name for disk, name in names.items() if name != disk}).with_value_head({})
    heads = spec.compare == "whole" and own_config and bool(found.modules[1]) and _has_head(whole, part, found)
    return Outcome(
        result.with_documents(documents),
        _promise(found, heads=heads),
        tuple(_notes(checkpoint, structure, dropped, [found.names[name] for name in made], documents, heads=heads)),
        correspondence=Correspondence(part=found.modules),
        vocabulary=_vocabulary(documents) if takes_ids(part.model) and TOKENIZER in checkpoint.documents else None,
        scope=Scope.EVERYTHING if heads else Scope.BACKBONE,
    )


def _vocabulary(documents: Mapping[str, Any]) -> VocabularyOutcome:
    """No id changes; the tokenizer may have the chat template that was its processor's."""
    return VocabularyOutcome({}, frozenset(), TEMPLATE in documents, lambda: None, makes_rows=False)


def _check_class(spec: ExtractSubmodel, whole: Skeleton) -> None:
    import transformers

    if spec.architecture == whole.architecture:
        raise RecipeError(f"the checkpoint is a {whole.architecture} already", field="architecture")
    if not isinstance(getattr(transformers, spec.architecture, None), type):
        near = did_you_mean(spec.architecture, [name for name in dir(transformers) if name[:1].isupper()])
        meant = f"; did you mean {shown(near)}?" if near else ""
        raise RecipeError(f"{printable(spec.architecture)} is no class of transformers{meant}", field="architecture")


def _with_ties(config: dict[str, Any], part: Skeleton, whole: Skeleton, found: Part) -> dict[str, Any]:
    """The config that ties the output table where the whole's is tied, and only there."""
    for name in sorted(part.weight_names(OUTPUT) & found.names.keys()):
        tied = found.names[name] in whole.tied
        if tied != (name in part.tied):
            return {**config, "tie_word_embeddings": tied}
    return config


def _names_of_stored(structure: Structure, found: Part, part: Skeleton) -> dict[str, str]:
    """Name in the whole's memory of each stored tensor -> its name in the part; of tied ones, one that the part loads by itself."""
    tied, names = structure.skeleton.tied, dict[str, str]()
    for ours in sorted(found.names, key=lambda name: name in part.tied):
        theirs = found.names[ours]
        stored = theirs if structure.memory.on_disk(theirs) else tied.get(theirs, theirs)
        names.setdefault(stored, ours)
    return names


def _made(
    checkpoint: Checkpoint, structure: Structure, found: Part, names: Mapping[str, str], part: Skeleton
) -> dict[str, Computed]:
    """By name in the part, what only the whole's loader makes of its tensors on disk, as it stands in memory."""
    loaded = part.memory_names(names.values())
    missing = [name for name in found.names if not loaded.on_disk(name) and name not in part.tied]
    made = converted_tensors(checkpoint, structure, [found.names[name] for name in missing])
    return {name: made[found.names[name]] for name in missing if found.names[name] in made}


def _check_whole(
    checkpoint: Checkpoint, names: Mapping[str, str], made: Mapping[str, Computed], part: Skeleton, whole: Skeleton
) -> None:
    info = part.loading({**{ours: checkpoint.tensors[disk] for disk, ours in names.items()}, **made})
    if info.missing:
        raise InputRejected(
            f"{checkpoint.name}: {part.architecture} has {plural(len(info.missing), 'tensor')} that its part of"
            f" {whole.architecture} lacks: {few(info.missing)}; take a class without them"
        )


def _has_head(whole: Skeleton, part: Skeleton, found: Part) -> bool:
    """Whether the part's logits are those of the whole."""
    outputs = part.weight_names(OUTPUT)
    return bool(outputs) and {found.names.get(name) for name in outputs} <= whole.weight_names(OUTPUT)


def _promise(found: Part, *, heads: bool) -> Promise:
    place, _ = found.modules
    observable = f"hidden states{' and logits' if heads else ''} of {place or 'the base model'}"
    return Promise(PromiseClass.BITWISE, observable, "token ids" if heads else EVERY_INPUT)


def _notes(
    checkpoint: Checkpoint, structure: Structure, dropped: list[str], made: list[str], documents: Mapping[str, Any],
    *, heads: bool,
) -> Iterator[str]:  # fmt: skip
    kept = {memory.name for disk, memory in structure.memory.items() if disk not in dropped} | {*made}
    groups: dict[str, list[str]] = {}
    for disk in dropped:
        if (name := structure.memory[disk].name) not in made:
            groups.setdefault(_outermost(name, kept), []).append(disk)
    for module, held in sorted(groups.items()):
        size = sum(checkpoint.tensors[disk].nbytes for disk in held)
        yield f"left out: {printable(module)}, {plural(len(held), 'tensor')}, {size:,} bytes"
    if gone := [name for name, value in documents.items() if value is None]:
        yield f"left out, since the part has no use for them: {few(gone)}"

    if made:
        yield (
            f"{plural(len(made), 'tensor')} as {structure.skeleton.architecture} has them in memory, since the part's class does not"
            f" convert them from disk: {few(made)}"
        )
    if heads:
        yield WHOLE_NOTE


def _outermost(name: str, kept: set[str]) -> str:
    """The outermost module around a tensor that holds nothing of what is kept."""
    steps = name.split(".")
    paths = [".".join(steps[:count]) for count in range(1, len(steps) + 1)]
    return next((path for path in paths if not any(f"{other}.".startswith(f"{path}.") for other in kept)), name)
