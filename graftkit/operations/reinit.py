"""reinit: fresh values for chosen tensors, such as the top layers of an encoder before few-sample fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

from graftkit.architecture import skeleton as sk
from graftkit.architecture.accounting import Structure, account
from graftkit.architecture.embeddings import OUTPUT
from graftkit.architecture.fresh_values import own_values
from graftkit.architecture.layers import LayerList, layer_list
from graftkit.architecture.parameters import is_parameter, text_value
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import equal_bytes
from graftkit.checkpoint.tensors import FLOATING
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.initializers.make import ModelFacts
from graftkit.operations.base import Context, Outcome
from graftkit.operations.weights.facts import model_facts
from graftkit.operations.weights.fresh import FreshTensors, Target
from graftkit.operations.weights.learning_rates import FILE, mup_multipliers, with_multipliers
from graftkit.operations.weights.patterns import matching
from graftkit.recipe.reinit import Reinit
from graftkit.recipe.weight_schemes import Mup, WeightNormal
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope


def reinit(spec: Reinit, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Give the selected tensors the values of a model that was never trained.

    Raises:
        InputRejected: the weights are quantized, a selected tensor is stored in a form that is not understood, or the
            class has no list of layers.
        RecipeError: a pattern or a layer that is not there, or an ``init`` that no selected tensor would get.
    """
    structure = account(checkpoint)
    layers = _layers(structure.skeleton) if spec.layers is not None else None
    targets = _targets(spec, checkpoint, structure, layers)
    _check_ties(checkpoint, structure, targets)
    matrices = [target for target in targets if target.layout is not None]
    if spec.init is not None and not matrices:
        raise RecipeError(
            "no matrix is selected; gains and biases get what their class gives a new model", field="init"
        )
    scheme = spec.init or WeightNormal()
    if (
        isinstance(scheme, Mup)
        and scheme.std is None
        and (tables := [t for t in matrices if t.layout and t.layout.lookup])
    ):
        raise RecipeError(
            f"{printable(tables[0].disk)!r} is looked up, and has no fan in that could give its spread; give std",
            field="init",
        )
    facts = model_facts(structure.skeleton)
    fresh = FreshTensors(scheme, facts, (context.seed, context.place))
    readouts = structure.skeleton.weight_names(OUTPUT)
    changes = {t.disk: fresh.computed(t, checkpoint.tensors[t.disk], readout=t.name in readouts) for t in targets}
    shapes = [(target.name, changes[target.disk].shape, target.layout) for target in targets]
    multipliers = mup_multipliers(scheme, shapes, structure.skeleton)
    result = with_multipliers(checkpoint.with_tensors(changes), multipliers)
    many = f"{len(targets)} tensors are" if len(targets) > 1 else "one tensor is"
    promise = Promise(PromiseClass.INTENTIONAL, f"{many} made anew", EVERY_INPUT)
    notes = tuple(_notes(spec, scheme.scheme, targets, matrices, layers, facts, structure.skeleton))
    return Outcome(result, promise, notes, scope=Scope.MEASURE, figures=fresh.figures, noted=fresh.noted)


def _layers(skeleton: sk.Skeleton) -> LayerList:
    try:
        return layer_list(skeleton)
    except InputRejected as error:
        raise InputRejected(f"{error}; leave out 'layers' and name the parameters") from error


def _targets(spec: Reinit, checkpoint: Checkpoint, structure: Structure, layers: LayerList | None) -> list[Target]:
    candidates = dict(_candidates(checkpoint, structure))
    if layers is not None:
        prefixes = _prefixes(spec, layers)
        candidates = {disk: item for disk, item in candidates.items() if item[0].startswith(prefixes)}
    names = {disk: (disk, name) for disk, (name, _, _) in candidates.items()}
    chosen = matching(spec.parameters, names)
    found = [_target(checkpoint, disk, *candidates[disk]) for disk in chosen]
    targets = [target for target in found if target.layout is not None or _has_class_values(checkpoint, target)]
    known = {target.disk for target in targets}
    unknown = [t for t in found if t.disk not in known and is_parameter(t.skeleton, t.name)]
    if unknown:
        leaves = dict.fromkeys(f"!*.{printable(target.disk.rpartition('.')[2])}" for target in unknown)
        remedy = ", ".join(f'"{pattern}"' for pattern in [*(spec.parameters or ["*"]), *leaves])
        raise RecipeError(
            f"{unknown[0].skeleton.architecture} does not say what {printable(unknown[0].disk)!r} holds in a new"
            f" model; leave it out: parameters: [{remedy}]"
        )
    return targets


def _candidates(checkpoint: Checkpoint, structure: Structure) -> Iterator[tuple[str, tuple[str, bool, sk.Skeleton]]]:
    """Every tensor on disk that a class knows: name on disk -> (name in memory, whether it is converted, its class)."""
    siblings: dict[str, sk.Skeleton] = {}
    for disk, (name, converted) in structure.memory.items():
        if name in structure.skeleton.shapes:
            yield disk, (name, converted, structure.skeleton)
        elif (architecture := structure.unloaded[disk].architecture) is not None:
            if architecture not in siblings:
                siblings[architecture] = sk.build_skeleton(checkpoint.config, architecture)
            sibling = siblings[architecture]
            yield disk, (*sibling.memory_names([disk])[disk], sibling)


def _prefixes(spec: Reinit, layers: LayerList) -> tuple[str, ...]:
    numbers = spec.layer_numbers(layers.count)
    missing = [number for number in numbers if not 0 <= number < layers.count]
    if missing:
        raise RecipeError(
            f"{layers.path} has {layers.count} layers, numbered from 0 to {layers.count - 1}", field="layers"
        )
    return tuple(layers.prefix(number) for number in numbers)


def _target(checkpoint: Checkpoint, disk: str, name: str, converted: bool, skeleton: sk.Skeleton) -> Target:
    tensor, quoted = checkpoint.tensors[disk], repr(printable(disk))
    if converted and not (len(tensor.shape) == 2 and len(skeleton.shapes[name]) == 3):
        raise InputRejected(f"tensor {quoted} is stored in a converted form that reinit does not understand")
    if tensor.dtype not in FLOATING and is_parameter(skeleton, name):
        raise InputRejected(f"tensor {quoted} is of dtype {tensor.dtype}, not floating point")
    return Target.find(disk, name, skeleton, converted=converted)


def _has_class_values(checkpoint: Checkpoint, target: Target) -> bool:
    """Whether the class says what a new model holds there; a buffer of which it says nothing is no weight and stays."""
    floating = checkpoint.tensors[target.disk].dtype in FLOATING
    return floating and own_values(target.skeleton, target.name, 0) is not None


def _check_ties(checkpoint: Checkpoint, structure: Structure, targets: list[Target]) -> None:
    """A tensor that is stored twice would be untied by new values on one side."""
    partners = [*structure.skeleton.tied.items(), *((b, a) for a, b in structure.skeleton.tied.items())]
    chosen = {target.name: target.disk for target in targets}
    for name, other in partners:
        there = structure.memory.first_on_disk(other)
        if name in chosen and there is not None:
            here = chosen[name]
            if equal_bytes(checkpoint.tensors[here], checkpoint.tensors[there]):
                raise InputRejected(
                    f"tensor {printable(here)!r} is tied to {printable(there)!r}, and both are stored;"
                    " save the checkpoint once with transformers, which stores one"
                )


def _notes(
    spec: Reinit, scheme: str, targets: list[Target], matrices: list[Target], layers: LayerList | None,
    facts: ModelFacts, skeleton: sk.Skeleton,
) -> Iterator[str]:  # fmt: skip
    if layers is not None:
        numbers = spec.layer_numbers(layers.count)
        which = f"layer{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))}"
        yield f"{which} of the {layers.count} in {layers.path}"
    rest = len(targets) - len(matrices)
    others = "one gain, bias or the like" if rest == 1 else f"{rest} gains, biases and the like"
    as_class = f"{others} as a new {skeleton.architecture} has them"
    many = "one matrix" if len(matrices) == 1 else f"{len(matrices)} matrices"
    yield ", ".join([f"{many} by {scheme}"] * bool(matrices) + [as_class] * bool(rest))
    if spec.init is None or getattr(spec.init, "std", 0) is None:
        found = text_value(skeleton, "initializer_range", "init_std")
        yield f"std {facts.std:g}, {'from the config' if found else 'since the config names no initializer_range'}"
    if scheme == "mup":
        yield f"{FILE} holds the learning-rate multipliers for the trainer"
