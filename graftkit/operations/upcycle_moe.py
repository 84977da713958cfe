"""upcycle_moe: a sparse mixture of experts whose experts are copies of the dense layer, with the function as it was."""

from __future__ import annotations

from collections.abc import Iterator

from graftkit.architecture.accounting import account
from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.layers import layer_list
from graftkit.architecture.skeleton import Skeleton, model_class
from graftkit.architecture.widths.growth import kind
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations.base import Context, Outcome
from graftkit.operations.experts.search import Miniature, Upcycling, find_upcycling
from graftkit.operations.experts.sources import New
from graftkit.operations.experts.sparse_config import Unfit, candidates, is_sparse
from graftkit.operations.experts.tensors import sparse_tensors
from graftkit.recipe.upcycle_moe import UpcycleMoe
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope


def upcycle_moe(spec: UpcycleMoe, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Put as many copies of each feed-forward layer as ``spec`` says behind a new router.

    The chosen experts give the same, and their weights add up to one but for rounding: what is promised is equality over the real
    numbers, and it is looked for in float64.

    Raises:
        RecipeError: the base is sparse already, or the class that is named does not do what the dense one does.
        InputRejected: no sparse class does.
    """
    structure = account(checkpoint)
    dense = structure.skeleton
    if is_sparse(dense):
        raise RecipeError(f"{dense.architecture} has experts already")
    found = _found(spec, checkpoint, dense)
    result = sparse_tensors(checkpoint, structure, found, spec.router_init, (context.seed, context.place))
    return Outcome(
        result.with_documents({"config.json": dict(found.config)}),
        Promise(PromiseClass.EXACT, "hidden states and logits", EVERY_INPUT),
        tuple(_notes(spec, dense, found)),
        correspondence=Correspondence(gone=_gone(dense, found.skeleton)),
        scope=Scope.REORDERED,
        figures=lambda: {
            "architecture": found.skeleton.architecture,
            "ways": {name: str(way) for name, way in found.ways.items()},
        },
    )


def _found(spec: UpcycleMoe, checkpoint: Checkpoint, dense: Skeleton) -> Upcycling:
    counts = spec.num_experts, spec.num_experts_per_tok
    if spec.architecture is not None:
        try:
            model_class(spec.architecture)
        except InputRejected as error:
            raise RecipeError(
                f"{printable(spec.architecture)} is no model class of transformers", field="architecture"
            ) from error
    small = Miniature(checkpoint.config, dense)
    if spec.architecture is not None:
        try:
            return find_upcycling(checkpoint.config, dense, small, spec.architecture, counts)
        except (Unfit, InputRejected) as error:
            raise RecipeError(
                f"{spec.architecture} cannot do what {dense.architecture} does: {error}", field="architecture"
            ) from error
    tried = candidates(checkpoint.config, dense.architecture)
    for name in tried:
        try:
            return find_upcycling(checkpoint.config, dense, small, name, counts)
        except (Unfit, InputRejected):
            continue
    raise InputRejected(
        f"{checkpoint.name}: {dense.architecture}: none of {plural(len(tried), 'sparse class')} does what it does; name one with"
        " architecture to see why it does not"
    )


def _gone(dense: Skeleton, sparse: Skeleton) -> tuple[str, ...]:
    """The outermost modules that the dense class alone has."""
    kept = {name for name, _ in sparse.model.named_modules()}
    names = [name for name, _ in dense.model.named_modules() if name not in kept]
    return tuple(name for name in names if name.rpartition(".")[0] in kept)


def _which(found: Upcycling) -> str:
    """In which layers the experts are."""
    routers = (name.split(".") for name in found.own if found.ways[kind(name)] == New("router"))
    blocks = {next(step for step in steps if step.isdigit()) for steps in routers}
    count = layer_list(found.skeleton).count
    return "each layer" if len(blocks) == count else f"{len(blocks)} of {plural(count, 'layer')}"


def _notes(spec: UpcycleMoe, dense: Skeleton, found: Upcycling) -> Iterator[str]:
    yield (
        f"{dense.architecture} becomes {found.skeleton.architecture}: {spec.num_experts} experts in {_which(found)}, each token sent to"
        f" {spec.num_experts_per_tok}; {found.fields.experts} counts them"
    )
    for name, way in found.ways.items():
        if isinstance(way, New):
            how = {
                "zero": "zero, so that the model does what it did",
                "router": f"by {spec.router_init.scheme}",
                "class": "as the class gives a new model",
            }
            yield f"new: {printable(name)}, {how[way.by]}"
        else:
            yield f"copied: {printable(name)} from {way}"
    for name, value in found.fields.flags.items():
        yield f"{name} is {str(value).lower()}, without which outputs are others"
    if found.dropped:
        yield f"fields that {found.skeleton.architecture} does not know, left out of config.json: {few(found.dropped)}"
    yield "while all experts of a layer are equal its router has no gradient: they part by the tokens that each is sent, then it learns"
