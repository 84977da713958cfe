"""replace_head: a new head for a task, every tensor of it written, on a backbone that stays as it is."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence

from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.embeddings import OUTPUT
from graftkit.architecture.head import Head, backbone_names, find_head, task_architecture
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tensors import FLOATING
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.operations.base import Context, Outcome
from graftkit.operations.combinations import check_zero_factors
from graftkit.operations.heads.documents import check_padding_side, head_config, with_pad_token
from graftkit.operations.heads.examples import with_labels_of_file
from graftkit.operations.heads.prepared import HeadPreparation, runs_the_model
from graftkit.operations.heads.quantized import check_values, with_plain_head
from graftkit.operations.heads.trained_rows import find_trained_rows
from graftkit.operations.heads.value_head import add_value_head
from graftkit.operations.heads.values import HeadMaker
from graftkit.operations.weights.learning_rates import head_multipliers, with_multipliers
from graftkit.recipe import ReplaceHead
from graftkit.recipe.head_schemes import HeadZeros
from graftkit.recipe.replace_head import LABELLED, LANGUAGE
from graftkit.verification.heads.check import HeadCheck, HeadPromise
from graftkit.verification.heads.media import takes_text
from graftkit.verification.heads.padding import Side
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope

#: Tasks whose head turns a whole text into one row of logits.
POOLING = ("sequence_classification", "reward")


def replace_head(spec: ReplaceHead, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Give the checkpoint the class and the head of a task, or a value head beside it; the backbone's bytes are kept.

    Raises:
        InputRejected: transformers has no class for the task on this model type, or the checkpoint lacks part of its
            backbone.
        RecipeError: the recipe asks for something that this class has no place for.
    """
    if spec.task == "value_head":
        return add_value_head(spec, checkpoint, context)
    spec = with_labels_of_file(spec)
    structure = account(checkpoint)
    config = head_config(spec, checkpoint.config, task_architecture(checkpoint.config, spec.task))
    head = find_head(checkpoint, structure, config, language=spec.task in LANGUAGE)
    _check_head(spec, head, checkpoint)
    check_values(checkpoint, runs_model=runs_the_model(spec))
    kept = _lm_head(structure, head) if spec.keep_lm_head else ()
    dropped = tuple(name for name in head.dropped if name not in kept)
    rows = find_trained_rows(spec, head, checkpoint, structure)
    maker = HeadMaker(spec, head, source_dtype(checkpoint, structure), (context.seed, context.place), trained_rows=rows)
    result = _with_head(spec, checkpoint, structure, maker, dropped)
    preparation = HeadPreparation(spec, head, maker, checkpoint, structure)
    lost_values = () if spec.task in LANGUAGE else tuple(checkpoint.value_head)
    return Outcome(
        result,
        _promise(),
        tuple(_notes(head, (*dropped, *lost_values), kept, finds_last_token=_finds_last_token(spec, head))),
        new_modules=head.modules,
        scope=Scope.BACKBONE if takes_text(head.skeleton.model) else Scope.NOTHING,
        checks=(HeadCheck(_head_promise(spec, head)), *preparation.checks()),
        prepare=functools.partial(preparation.run, result),
        figures=preparation.figures,
    )


def _with_head(
    spec: ReplaceHead, checkpoint: Checkpoint, structure: Structure, maker: HeadMaker, dropped: Sequence[str]
) -> Checkpoint:
    """The checkpoint of the head's class, with the tensors that ``maker`` makes in place of those that are ``dropped``."""
    head = maker.head
    result = with_pad_token(spec, checkpoint, needed=_finds_last_token(spec, head))
    config = head_config(spec, result.config, head.skeleton.architecture)
    config = with_plain_head(config, head, frozenset(structure.packed.tensors.values()))
    result = with_multipliers(result.with_documents({"config.json": config}), head_multipliers(spec, head))
    own = head.skeleton.model.state_dict()
    new = {t.name: maker.tensor(t, maker.dtype if own[t.name].is_floating_point() else "I64") for t in head.tensors}
    result = result.with_tensors({**dict.fromkeys(dropped), **new}).with_names(head.renamed)
    return result if spec.task in LANGUAGE else result.with_value_head({})


def _head_promise(spec: ReplaceHead, head: Head) -> HeadPromise:
    """Both paddings where the head itself finds the last token; encoders change with left padding by their nature.

    Images are not padded, whatever they are fed as (ImageGPT: ids of colours).
    """
    sides: tuple[Side, ...] = ("right", "left") if _finds_last_token(spec, head) else ("right",)
    return HeadPromise(
        projection=tuple(tensor.name for tensor in head.tensors_of("projection")),
        sides=() if spec.task == "image_classification" else sides,
        pools_at_eos=head.pools_at_eos,
        choices=spec.task == "multiple_choice",
        prior=_prior(spec),
        multi_label=spec.problem == "multi_label_classification",
    )


def _finds_last_token(spec: ReplaceHead, head: Head) -> bool:
    return head.pools_at_pad and not head.pools_at_eos and spec.task in POOLING


def _prior(spec: ReplaceHead) -> tuple[float, ...]:
    """What zeros and their bias say of each label: the class prior, or that all are equally likely."""
    count = spec.count or 1
    if not isinstance(spec.init, HeadZeros) or count == 1 or spec.problem == "regression":
        return ()
    if spec.problem == "multi_label_classification":
        return (
            spec.init.class_prior * (count // len(spec.init.class_prior)) if spec.init.class_prior else (0.5,) * count
        )
    return spec.init.class_prior or (1 / count,) * count


def source_dtype(checkpoint: Checkpoint, structure: Structure) -> str:
    """The floating dtype that most of the checkpoint's bytes have, packed weights left out."""
    nbytes: Counter[str] = Counter()
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype in FLOATING and name not in structure.packed.tensors:
            nbytes[tensor.dtype] += tensor.nbytes
    return nbytes.most_common(1)[0][0]


def _check_head(spec: ReplaceHead, head: Head, checkpoint: Checkpoint) -> None:
    """Refuse what the class has no place for."""
    name = head.skeleton.architecture
    if not head.tensors and not head.dropped and checkpoint.config.get("architectures") == [name]:
        raise RecipeError(f"the checkpoint is {name} already, with every tensor of its head")
    if head.reads_last_position:
        check_padding_side(checkpoint, name)
    if spec.task in LABELLED and not head.tensors_of("projection"):
        raise InputRejected(f"{name}: no tensor of its head depends on the number of labels")
    check_zero_factors(spec, head)
    prior = isinstance(spec.init, HeadZeros) and spec.init.class_prior
    if prior and not head.tensors_of("projection_bias"):
        shown = printable(head.tensors_of("projection")[0].name)
        raise RecipeError(
            f"a class_prior is written into the bias, and the label projection {shown!r} of {name} has none",
            field="init",
        )


def _lm_head(structure: Structure, head: Head) -> tuple[str, ...]:
    """Names on disk of the old language-model head, to keep."""
    skeleton: Skeleton = structure.skeleton
    outputs = skeleton.weight_names(OUTPUT)
    if not outputs:
        raise RecipeError(f"{skeleton.architecture} has no language-model head to keep", field="keep_lm_head")
    backbone = backbone_names(structure) - {d for d, (key, _) in structure.memory.items() if key in outputs}
    return tuple(name for name in head.dropped if name not in backbone)


def _promise() -> Promise:
    observable = "hidden states of the backbone (the logits are those of a new head)"
    return Promise(PromiseClass.BITWISE, observable, EVERY_INPUT)


def _notes(head: Head, dropped: tuple[str, ...], kept: tuple[str, ...], *, finds_last_token: bool) -> Iterator[str]:
    modules = ", ".join(head.modules) or "nothing"
    yield f"{head.skeleton.architecture}: new modules: {modules}"
    if dropped:
        yield f"the old head is dropped: {', '.join(dropped)}"
    if kept:
        yield f"kept beside the new head, which does not load it: {', '.join(kept)}"
    if finds_last_token:
        yield "the head reads the last token that is not padding"
