"""retarget_adapter: a LoRA adapter with the names and the layout of another class, and every product as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.adapter_edits import Placed, find_edits, place_adapter
from graftkit.architecture.peft.injection import saved_config
from graftkit.architecture.peft.parts import NAME
from graftkit.architecture.peft.places import Places, find_places
from graftkit.architecture.peft.retargeted_config import class_fields, retargeted_config
from graftkit.architecture.peft.source_class import find_source
from graftkit.architecture.peft.under_old_names import under_old_names
from graftkit.architecture.related_class import related_skeleton
from graftkit.architecture.skeleton import Skeleton, build_skeleton
from graftkit.checkpoint.adapter import Adapter, adapter_digests, open_adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.operations.adapters.base import check_base, written_config
from graftkit.operations.adapters.pattern_notes import pattern_notes
from graftkit.operations.base import Context, Outcome
from graftkit.recipe import RetargetAdapter
from graftkit.verification.adapters.retargeted import RetargetCheck
from graftkit.verification.adapters.retargeted_edits import unlike_edits
from graftkit.verification.promises import Promise, PromiseClass

if TYPE_CHECKING:
    from graftkit.checkpoint.tensors import LazyTensor


def retarget_adapter(spec: RetargetAdapter, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Return the adapter with the names of ``spec.to`` or of the base's own class; the base is left as it is.

    Raises:
        InputRejected: a module finds no place or several, or peft cannot put the adapter there.
        RecipeError: there is no such class for this base, or the adapter has its names already.
    """
    adapter, shown = open_adapter(spec.adapter), printable(spec.adapter)
    if adapter.config["peft_type"] != "LORA":
        raise InputRejected(
            f"{shown}: is a {printable(adapter.config['peft_type'])}; retarget_adapter renames LoRA alone"
        )
    own = build_skeleton(checkpoint.config)
    check_base(own, checkpoint)
    build = _builder(spec, checkpoint, own)
    skeleton = build()
    try:
        places = find_places(skeleton, adapter, lambda: _source(adapter, checkpoint))
    except InputRejected as error:
        raise InputRejected(f"{shown}: {error}") from error
    if places.same and class_fields(adapter.config, skeleton)["task_type"] == adapter.config.get("task_type"):
        raise RecipeError(f"every name of the adapter is one of {skeleton.architecture} already: it loads as it is")
    plain = replace(adapter, config={**adapter.config, "task_type": None})
    placed = place_adapter(under_old_names(build(), adapter, places), plain, shown)
    joined = bool(places.converted)
    found = _converted(adapter, places, skeleton, shown) if joined else _renamed(adapter, placed, places, skeleton)
    found = replace(found, config=written_config(found.config, checkpoint, context))
    edits = find_edits(build(), found, shown)
    if wrong := next(unlike_edits(placed.edits, edits, places, skeleton.tied), None):
        raise InputRejected(f"{shown}: peft does not do the same with the new names: {wrong}")
    folder = Path(spec.adapter).resolve()
    to = None if skeleton.architecture == own.architecture else skeleton.architecture
    return Outcome(
        checkpoint,
        _promise(skeleton),
        (*places.notes, *pattern_notes(adapter.config, placed.edits), *_notes(to, own)),
        adapter=found,
        checks=(RetargetCheck(folder, places, to),),
        figures=lambda: {"adapter": spec.adapter, **adapter_digests(folder), "class": skeleton.architecture},
    )


def _source(adapter: Adapter, checkpoint: Checkpoint) -> Skeleton | None:
    build = find_source(adapter, checkpoint.config)
    return build() if build else None


def _builder(spec: RetargetAdapter, checkpoint: Checkpoint, own: Skeleton) -> Callable[[], Skeleton]:
    """What makes skeletons of the class that the recipe names.

    Raises:
        RecipeError: the base's config makes no such class.
    """
    config, to = checkpoint.config, spec.to
    if to is None or to == own.architecture:
        return lambda: build_skeleton(config)
    try:
        related_skeleton(config, to)
    except InputRejected as error:
        raise RecipeError(str(error).removeprefix("config.json: architectures: "), field="to") from error
    return lambda: related_skeleton(config, to)


def _renamed(adapter: Adapter, placed: Placed, places: Places, skeleton: Skeleton) -> Adapter:
    """The same tensors by other names."""
    tensors = {places.key(name): tensor for name, tensor in adapter.tensors.items()}
    return Adapter(retargeted_config(adapter.config, placed.model.base_model.model, places, skeleton), tensors)


def _converted(adapter: Adapter, places: Places, skeleton: Skeleton, shown: str) -> Adapter:
    """What peft itself makes of an adapter with a factor for each expert, on a class that holds experts in fused weights.

    Raises:
        InputRejected: peft knows no conversion for this class, or a prefix is another one besides.
    """
    if places.exchange is not None:
        raise InputRejected(
            f"{shown}: has weights of experts that are fused now, and another prefix: peft converts them under the class that it was"
            " trained on alone; retarget it to that class first"
        )
    config = {**adapter.config, **class_fields(adapter.config, skeleton)}
    fused = place_adapter(skeleton, replace(adapter, config=config), shown)
    return Adapter({**saved_config(fused.model), "base_model_name_or_path": None}, dict(_saved_tensors(fused)))


def _saved_tensors(placed: Placed) -> Iterator[tuple[str, LazyTensor]]:
    """Yield each tensor that peft would save, with what was put there."""
    from peft import get_peft_model_state_dict

    state: dict[str, Any] = get_peft_model_state_dict(placed.model, adapter_name=NAME, save_embedding_layers=False)
    held = {}
    for path, value in placed.model.named_parameters(remove_duplicate=False):
        saved = path.replace(f".modules_to_save.{NAME}", "").replace(f".{NAME}", "")
        held[saved] = path, value
    for name in state:
        path, value = held[name]
        yield name, placed.placement.tensor_behind(value, path.removeprefix("base_model.model."))


def _promise(skeleton: Skeleton) -> Promise:
    return Promise(
        PromiseClass.BITWISE,
        "the product of every weight, and all outputs",
        f"sequences of token ids, with the adapter loaded by peft on {skeleton.architecture}",
    )


def _notes(to: str | None, own: Skeleton) -> Iterator[str]:
    if to is not None:
        yield f"written for {to}, not for the base's own {own.architecture}: peft puts it on a model of that class alone"
