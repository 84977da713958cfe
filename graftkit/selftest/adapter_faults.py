"""Faults in an adapter and in its base, most of which peft loads without a word. A new check enters with its fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from graftkit.checkpoint.adapter import CONFIG, FOLDER, WEIGHTS, open_adapter
from graftkit.checkpoint.tensors import Stored
from graftkit.selftest import files, settings, weights
from graftkit.selftest.adapters import BASE_FOLDER, AdapterSubject, write_again
from graftkit.selftest.copies import copy_checkpoint, edit_json, edit_stored
from graftkit.selftest.fault import ADAPTER, BASE, GRADIENTS, LOADING, OUTPUTS, PEFT, Fault
from graftkit.selftest.settings import changed
from graftkit.selftest.subject import Subject, first

PlantAdapter = Callable[[Path, AdapterSubject, str], None]


def _in_config(value: Callable[[Any], Any]) -> PlantAdapter:
    def plant(directory: Path, _: AdapterSubject, key: str) -> None:
        edit_json(directory / FOLDER, CONFIG, lambda config: config.update({key: value(config[key])}))

    return plant


def _in_factor(factor: str, change: Callable[[Path, str], None]) -> PlantAdapter:
    return lambda directory, _, target: change(directory, f"{target}.lora_{factor}.weight")


def _edit(directory: Path, name: str, change: Callable[[Any], None]) -> None:
    tensor = open_adapter(str(directory / FOLDER)).tensors[name]
    if not isinstance(tensor, Stored):
        raise TypeError(f"{name} is not stored")
    edit_stored(tensor, change)


def _flip(directory: Path, name: str) -> None:
    _edit(directory, name, weights.flip_middle)


def _fill(value: float) -> Callable[[Path, str], None]:
    return lambda directory, name: _edit(directory, name, lambda values: values.fill_(value))


def _one_nan(directory: Path, name: str) -> None:
    _edit(directory, name, lambda values: values.view(-1)[:1].fill_(float("nan")))


def _rename(directory: Path, name: str) -> None:
    tensors = open_adapter(str(directory / FOLDER)).tensors
    write_again(directory, {f"{key}s" if key == name else key: tensor for key, tensor in tensors.items()})


def _drop(directory: Path, _: AdapterSubject, target: str) -> None:
    tensors = open_adapter(str(directory / FOLDER)).tensors
    write_again(directory, {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{target}.")})


def _named(subject: AdapterSubject) -> str:
    """The entry of the config's list of targets that the last target goes by."""
    named = subject.adapter.config.get("target_modules")
    entries = named if isinstance(named, list) and len(named) > 1 else []
    return str(first((entry for entry in entries if _is(subject.target(), entry)), "no list names several targets"))


def _is(module: str, entry: str) -> bool:
    return f".{module}".endswith(f".{entry}")


def _forget(directory: Path, _: AdapterSubject, entry: str) -> None:
    """Leave the target out of config and weights alike: what is left is a whole adapter."""
    tensors = open_adapter(str(directory / FOLDER)).tensors
    write_again(
        directory, {key: tensor for key, tensor in tensors.items() if not _is(key.partition(".lora_")[0], entry)}
    )
    edit_json(directory / FOLDER, CONFIG, lambda config: config["target_modules"].remove(entry))


def _in_base(at: Callable[[Subject], str], plant: Callable[[Path, Subject, str], None]) -> tuple[Any, PlantAdapter]:
    def put(directory: Path, subject: AdapterSubject, place: str) -> None:
        plant(copy_checkpoint(subject.model.checkpoint, directory / BASE_FOLDER), subject.model, place)

    return (lambda subject: at(subject.model)), put


def _truncate(directory: Path, subject: AdapterSubject, name: str) -> None:
    files.truncate(directory / FOLDER, subject.model, name)


_target = AdapterSubject.target

ADAPTER_FAULTS: tuple[Fault[AdapterSubject], ...] = (
    Fault("adapter: changed alpha", lambda _: "lora_alpha", _in_config(lambda old: 2 * old), (ADAPTER,)),
    Fault("adapter: other rank", lambda _: "r", _in_config(lambda old: old + 1), (ADAPTER, PEFT)),
    Fault("adapter: renamed key", _target, _in_factor("B", _rename), (ADAPTER, PEFT)),
    Fault("adapter: dropped tensors", _target, _drop, (ADAPTER, PEFT)),
    Fault("adapter: dropped target", _named, _forget, (ADAPTER,)),
    Fault("adapter: flipped bit in A", _target, _in_factor("A", _flip), (ADAPTER,)),
    Fault("adapter: flipped bit in B", _target, _in_factor("B", _flip), (ADAPTER,)),
    Fault("adapter: NaN in A", _target, _in_factor("A", _one_nan), (ADAPTER, OUTPUTS)),
    Fault("adapter: B that is not zero", _target, _in_factor("B", _fill(1e-2)), (ADAPTER, OUTPUTS)),
    Fault("adapter: A of zeros", _target, _in_factor("A", _fill(0)), (ADAPTER, GRADIENTS)),
    Fault("adapter: file truncated", lambda _: WEIGHTS, _truncate, (LOADING,)),
    Fault("adapter: another base of the same shape", *_in_base(Subject.weight, weights.flip_an_ulp), (BASE,)),
    Fault(
        "adapter: base with another eps",
        *_in_base(settings.epsilon, changed(lambda old: max(1e3 * old, 1e-3))),
        (BASE,),
    ),
    Fault("adapter: base with another dtype", *_in_base(weights.two_byte_weight, weights.other_dtype), (BASE,)),
)
