"""add_adapter: any of peft's other adapters beside the base, initialised by peft itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.architecture.module_names import expand_names
from graftkit.architecture.peft.config_fields import config_fields
from graftkit.architecture.peft.targets import check_layers, check_pattern, resolve_names
from graftkit.architecture.peft.task import task_type
from graftkit.architecture.peft.tuner import Tuned, tune
from graftkit.architecture.skeleton import Skeleton, architecture_of
from graftkit.checkpoint.adapter import Adapter
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import TensorGroup
from graftkit.checkpoint.reading import TAGS, read_tensor, torch_dtype
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import RecipeError, plural
from graftkit.initializers.seeding import seed_of
from graftkit.operations.adapters.base import (
    Base,
    base_tensor,
    check_base,
    check_fields,
    disk_names,
    loaded_dtype,
    modules_to_save,
    trainable_tokens,
    untied,
    written_config,
)
from graftkit.operations.base import Context, Outcome
from graftkit.recipe.add_adapter import OWN, STARTS, AddAdapter
from graftkit.verification.adapters.check import AdapterCheck
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope

if TYPE_CHECKING:
    from torch import Tensor

#: Kinds that group a weight's rows by their values and make a tensor for each group.
SHAPED_BY_WEIGHTS = ("ADAMSS",)


@dataclass
class _Maker:
    """Makes the adapter: names and shapes when it is planned, and once more where peft needs weights for the values."""

    base: Base
    checkpoint: Checkpoint
    spec: AddAdapter
    fields: Mapping[str, Any]
    seed: int

    @functools.cached_property
    def unread(self) -> Tuned:
        """What peft makes on stand-ins for the weights."""
        return self._tune({})

    @property
    def planned(self) -> Tuned:
        """What names, shapes and dtypes are taken from."""
        return self.initialised if self.spec.peft_type in SHAPED_BY_WEIGHTS else self.unread

    @functools.cached_property
    def initialised(self) -> Tuned:
        """What peft makes with the values of every weight that it computes with."""
        tuned = self.unread
        weights: dict[str, Tensor] = {}
        while tuned.read:
            for name in tuned.read:
                weights[name] = read_tensor(self._stored(name)).to(torch_dtype(TAGS[self.base.dtype]))
            tuned = self._tune(weights)
        return tuned

    @functools.cached_property
    def disk(self) -> Mapping[str, str]:
        """Name in memory -> name on disk."""
        return disk_names(self.base(), self.checkpoint)

    def tensors(self) -> dict[str, LazyTensor]:
        """The lazy tensor of every name in adapter_model.safetensors.

        Raises:
            InputRejected: peft needs a weight that is stored in another form.
        """
        for name in sorted(self.unread.read):
            self._stored(name)
        group = TensorGroup(lambda: self.initialised.tensors)
        return {
            name: group.tensor(name, TAGS[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))
            for name, tensor in self.planned.tensors.items()
        }

    def _stored(self, name: str) -> LazyTensor:
        return base_tensor("add_adapter", self.checkpoint, self.disk, name)

    def _tune(self, weights: Mapping[str, Tensor]) -> Tuned:
        return tune(self.base(), self.spec.peft_type, self.fields, weights, self.seed)


def add_adapter(spec: AddAdapter, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Make the adapter as peft does, seeded; weights are read only where peft computes from them.

    Raises:
        RecipeError: a target or field does not fit this base or the installed peft, or peft refuses.
        InputRejected: the base cannot be operated on.
    """
    base = Base(checkpoint.config, loaded_dtype(checkpoint))
    skeleton = base()
    check_base(skeleton, checkpoint)
    fields, notes = _fields(spec, base, skeleton, context)
    seed = seed_of(context.seed, context.place, spec.peft_type)
    maker = _Maker(base, checkpoint, spec, fields, seed)
    _check_patterns(fields, maker.unread.modules)
    tie_notes: tuple[str, ...] = ()
    if spec.peft_type != "TRAINABLE_TOKENS":  # peft keeps tied rows together there
        checkpoint, tie_notes = untied(checkpoint, skeleton, maker.unread.trained)
    if tie_notes:
        maker = _Maker(Base(checkpoint.config, base.dtype), checkpoint, spec, fields, seed)
    tensors = maker.tensors()
    adapter = Adapter(written_config(maker.planned.config, checkpoint, context), tensors, maker.planned.frozen)
    strength = PromiseClass.INTENTIONAL if spec.allow_change else PromiseClass[STARTS[spec.peft_type].upper()]
    return Outcome(
        checkpoint,
        _promise(strength),
        (*_notes(maker), *notes, *tie_notes),
        adapter=adapter,
        scope=Scope.MEASURE if strength is PromiseClass.INTENTIONAL else Scope.EVERYTHING,
        checks=(AdapterCheck(strength),),
        reads_weights=bool(maker.unread.read),
    )


def _fields(
    spec: AddAdapter, base: Base, skeleton: Skeleton, context: Context
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of peft's config class, and sentences on what was left out."""
    known = config_fields(spec.peft_type)
    if not known:
        raise RecipeError(f"the installed peft has no {spec.peft_type}", field="peft_type")
    written: Mapping[str, Any] = spec.plain_fields()
    fields: dict[str, Any] = dict(written.get("config") or {})
    check_fields(spec.peft_type, fields, OWN)
    fields["task_type"] = spec.task_type or task_type(architecture_of({"architectures": [skeleton.architecture]}))
    notes: tuple[str, ...] = ()
    if spec.target_modules is not None:
        _need("target_modules", known, spec)
        fields["target_modules"], notes = resolve_names(base, written["target_modules"])
    modules = [name for name, _ in skeleton.model.named_modules() if name]
    if isinstance(fields.get("exclude_modules"), list):
        fields["exclude_modules"] = expand_names("config.exclude_modules", fields["exclude_modules"], modules)
    saved = modules_to_save(spec.modules_to_save, skeleton, context)
    saved = expand_names("modules_to_save", saved, modules)
    if saved and spec.modules_to_save == "auto" and "modules_to_save" not in known:
        notes += (f"the head is not trained: {spec.peft_type} has no modules_to_save",)
    elif saved:
        _need("modules_to_save", known, spec)
        fields["modules_to_save"] = saved
    return fields, (*notes, *_new_tokens(spec, fields, known, trainable_tokens(skeleton, context)))


def _check_patterns(fields: Mapping[str, Any], modules: tuple[str, ...]) -> None:
    """Refuse layers and names of patterns that fit none of the adapted modules, where peft tells which these are."""
    if not modules:
        return
    check_layers(_as_list(fields.get("layers_to_transform")), fields.get("layers_pattern"), modules)
    for name, value in fields.items():
        if name.endswith("_pattern") and isinstance(value, dict):
            check_pattern(name, value, modules)


def _as_list(layers: Any) -> Any:
    return [layers] if isinstance(layers, int) else layers


def _need(name: str, known: tuple[str, ...], spec: AddAdapter) -> None:
    if name not in known:
        raise RecipeError(f"has no effect: {spec.peft_type} has no such field", field=name)


def _new_tokens(
    spec: AddAdapter, fields: dict[str, Any], known: tuple[str, ...], tokens: Mapping[str, list[int]]
) -> Iterator[str]:
    """Let the rows of this recipe's new tokens learn where the kind can; else say that they do not."""
    if not tokens:
        return
    if spec.peft_type == "TRAINABLE_TOKENS":
        fields.setdefault("token_indices", next(iter(tokens.values())))
        fields.setdefault("target_modules", list(tokens))
    elif "trainable_token_indices" in known:
        fields.setdefault("trainable_token_indices", dict(tokens))
    else:
        yield f"the rows of the new tokens are not trained: {spec.peft_type} has no trainable_token_indices"


def _promise(strength: PromiseClass) -> Promise:
    said = {
        PromiseClass.BITWISE: (),
        PromiseClass.ROUNDED: ("peft's arithmetic gives back what it takes away, up to rounding",),
        PromiseClass.INTENTIONAL: ("the adapter is meant to change the outputs from the start",),
    }[strength]
    return Promise(strength, "every output of the base with the adapter", EVERY_INPUT, said)


def _notes(maker: _Maker) -> Iterator[str]:
    kind, tensors = maker.spec.peft_type, maker.planned.tensors
    yield f"{kind}: {plural(len(tensors), 'tensor')}, {plural(sum(tensor.numel() for tensor in tensors.values()), 'value')}"
    if maker.unread.read:
        when = "to plan it, since shapes depend on them" if kind in SHAPED_BY_WEIGHTS else "when it is written"
        is_read = "which is" if len(maker.unread.read) == 1 else "which are"
        yield f"peft computes from {plural(len(maker.unread.read), 'weight')}, {is_read} read {when}"
