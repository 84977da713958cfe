"""Which modules and parameters a LoRA targets: names, globs and all-linear, resolved by peft on a model without weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from graftkit.architecture.module_groups import kind_of
from graftkit.architecture.module_names import ends_with, expand_names, is_glob, names_matching, no_match
from graftkit.architecture.peft.injection import Injection, inject
from graftkit.architecture.peft.patterns import unmatched
from graftkit.architecture.peft.task import find_routers, towers
from graftkit.architecture.skeleton import Skeleton
from graftkit.errors import RecipeError, few, printable

ALL_LINEAR = "all-linear"

#: peft's own pattern of the first numbered part of a name, which it takes for the layer.
_LAYER = r".*?\.[^.]*\.(?P<index>\d+)\."

#: What is said of a layer in which nothing lies, with places for it and for those that there are.
NO_LAYER = "there is no layer {}; layers are: {}"
NO_TARGET = "no target lies in layer {}; targets lie in: {}"

Build = Callable[[], Skeleton]


def resolve(
    build: Build, values: Mapping[str, Any], skeleton: Skeleton | None = None
) -> tuple[Injection, tuple[str, ...]]:
    """Inject what ``values`` (fields of LoraConfig) describe, and say in sentences what was left out and why.

    ``build`` makes a fresh skeleton: each try consumes one, the first try ``skeleton`` where it is given. Towers that read
    images or sound, and routers under ``all-linear``, are targets only when they are named.

    Raises:
        RecipeError: an entry or pattern matches nothing (near names are shown), or peft refuses.
    """
    for field in ("rank_pattern", "alpha_pattern"):
        for key in values.get(field) or {}:
            _check_regex(field, key)
    skeleton = skeleton or build()
    modules = [name for name, _ in skeleton.model.named_modules() if name]
    values = {
        **values,
        **{f: expand_names(f, values[f], modules) for f in ("exclude_modules", "modules_to_save") if values.get(f)},
    }
    wanted = values["target_modules"]
    if isinstance(wanted, list):
        values = {**values, "target_modules": _expanded(build, skeleton, values)}
    every = isinstance(wanted, str) and wanted.lower() == ALL_LINEAR
    layers, pattern = values.get("layers_to_transform"), values.get("layers_pattern")
    check_layers(layers, pattern, modules, NO_LAYER)
    tower_names, routers = towers(skeleton), find_routers(skeleton.model)
    found = inject(skeleton, {**values, "layers_to_transform": None, "layers_pattern": None} if every else values)
    check_layers(layers, pattern, (*found.modules, *found.parameters))
    kept, notes = _leave_out_towers(found.modules, wanted, tower_names, routers if every else ())
    parameters = tuple(name for name in found.parameters if not (every and name.rpartition(".")[0] in routers))
    if every and layers is not None:
        kept = tuple(name for name in kept if _layer_of(name, pattern) in layers)
        parameters = tuple(name for name in parameters if _layer_of(name, pattern) in layers)
    if len(parameters) < len(found.parameters) or (every and set(routers) & set(found.modules)):
        notes += (f"routers are left out: {few(routers)}; name one to train it",)
    if (kept, parameters) != (found.modules, found.parameters):
        final = {
            "target_modules": _short_entries(found.config["target_modules"], kept, found.modules),
            "target_parameters": _short_entries(found.config["target_parameters"], parameters, found.parameters),
            "layers_to_transform": None,
            "layers_pattern": None,
        }
        patterns = {name: {**found.config[name]} for name in ("rank_pattern", "alpha_pattern")}
        found = inject(build(), {**values, **patterns, **final})
        if (set(found.modules), set(found.parameters)) != (set(kept), set(parameters)):
            odd = min({*found.modules, *found.parameters} ^ {*kept, *parameters})
            raise RecipeError(f"peft cannot tell {odd} from the others by name", field="target_modules")
    for field in ("rank_pattern", "alpha_pattern"):
        check_pattern(field, values.get(field) or {}, (*found.modules, *found.parameters))
    _check_parameters(values.get("target_parameters") or (), build)
    return found, notes


def resolve_names(build: Build, wanted: Any) -> tuple[Any, tuple[str, ...]]:
    """``target_modules`` for a kind of adapter whose targets need not be linears: globs become names, towers are left out.

    A regular expression and null are peft's to read. Also returns sentences on what was left out.

    Raises:
        RecipeError: an entry matches nothing; near names are shown.
    """
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        found, notes = resolve(build, {"r": 1, "target_modules": wanted})
        return found.config["target_modules"], notes
    if not isinstance(wanted, list):
        return wanted, ()
    skeleton = build()
    names = [name for name, module in skeleton.model.named_modules() if name]
    owning = [name for name in names if any(True for _ in skeleton.model.get_submodule(name).parameters(recurse=False))]
    entries: list[str] = []
    for entry in wanted:
        glob = is_glob(entry)
        fits = names_matching(owning, entry) if glob else [name for name in names if ends_with(name, entry)]
        if not fits:
            raise no_match("target_modules", entry, _adaptable(skeleton, names), owning)
        entries += fits if glob else [entry]
    found_names = tuple(name for name in names if any(ends_with(name, entry) for entry in entries))
    kept, notes = _leave_out_towers(found_names, wanted, towers(skeleton), ())
    return list(dict.fromkeys(entries)) if kept == found_names else list(kept), notes


def _expanded(build: Build, skeleton: Skeleton, values: Mapping[str, Any]) -> list[str]:
    """The entries with globs replaced by the full names that they match; each entry must match something."""
    names = [name for name, _ in skeleton.model.named_modules() if name]
    fit = _adaptable(skeleton, names)
    parameters = [name for name, _ in skeleton.model.named_parameters()]
    entries: list[str] = []
    for entry in values["target_modules"]:
        if is_glob(entry):
            fits = names_matching(fit, entry)
            if not fits:
                raise no_match("target_modules", entry, fit)
            layers, pattern = values.get("layers_to_transform"), values.get("layers_pattern")
            entries += [name for name in fits if layers is None or _layer_of(name, pattern) in layers]
        elif any(ends_with(name, entry) for name in names) or _peft_knows(build, values, entry):
            entries.append(entry)
        elif any(ends_with(name, entry) for name in parameters):
            raise RecipeError(
                f"{printable(entry)!r} is a parameter of no module of its own; name it in target_parameters",
                field="target_modules",
            )
        else:
            raise no_match("target_modules", entry, fit)
    return list(dict.fromkeys(entries))


def _adaptable(skeleton: Skeleton, names: Iterable[str]) -> list[str]:
    """The names of modules that peft's LoRA can adapt: no norms, and no modules that only hold others."""
    return [name for name in names if kind_of(skeleton.model.get_submodule(name))]


def _short_entries(before: Any, kept: tuple[str, ...], found: tuple[str, ...]) -> list[str]:
    """Peft's own entries where they match all kept names and no others; else the full names."""
    others = set(found) - set(kept)
    entries = (
        [e for e in before or () if not any(ends_with(name, e) for name in others)] if isinstance(before, list) else []
    )
    covered = {name for name in kept if any(ends_with(name, entry) for entry in entries)}
    return entries if covered == set(kept) else list(kept)


def _peft_knows(build: Build, values: Mapping[str, Any], entry: str) -> bool:
    """Whether peft renames ``entry``: experts that transformers 5 fused keep their old names in its table."""
    try:
        found = inject(build(), {"r": 1, "target_modules": [entry], "task_type": values.get("task_type")})
    except RecipeError as error:
        return "without also targeting" in str(error)
    return bool(found.modules or found.parameters)


def _leave_out_towers(
    found: tuple[str, ...], wanted: Any, tower_names: tuple[str, ...], routers: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Leave out routers, and towers that no entry names; a regular expression names what it matches."""
    regex = isinstance(wanted, str) and wanted.lower() != ALL_LINEAR
    entries = [] if isinstance(wanted, str) else wanted
    words = {word for entry in entries for word in re.split(r"[.*?\[\]]+", entry)}
    left = () if regex else tuple(tower for tower in tower_names if tower.rpartition(".")[2] not in words)
    kept = tuple(n for n in found if n not in routers and not n.startswith(tuple(f"{t}." for t in left)))
    gone = [tower for tower in left if any(name.startswith(f"{tower}.") for name in found)]
    return kept, tuple(f"{tower} is left out; name it in target_modules to adapt it" for tower in gone)


def _layer_of(name: str, pattern: str | None) -> int | None:
    match = re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\." if pattern else _LAYER, name)
    return int(match.group("index")) if match else None


def check_layers(layers: list[int] | None, pattern: str | None, names: Iterable[str], message: str = NO_TARGET) -> None:
    """Refuse a layer in which none of ``names`` lies, by :data:`NO_LAYER` or :data:`NO_TARGET`."""
    there = {_layer_of(name, pattern) for name in names}
    for layer in layers or ():
        if layer not in there:
            shown = ", ".join(map(str, sorted(index for index in there if index is not None))) or "none"
            raise RecipeError(message.format(layer, shown), field="layers_to_transform")


def check_pattern(field: str, patterns: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuse a name or regular expression that fits no target."""
    for sentence in unmatched(patterns, names):
        raise RecipeError(sentence, field=field)


def _check_regex(field: str, key: str) -> None:
    try:
        re.compile(key)
    except re.error as error:
        raise RecipeError(f"{printable(key)!r} is no regular expression: {error}", field=field) from error


def _check_parameters(entries: Iterable[str], build: Build) -> None:
    if not entries:
        return
    names = [name for name, _ in build().model.named_parameters()]
    for entry in entries:
        if not any(ends_with(name, entry) for name in names):
            close = difflib.get_close_matches(entry, {name.rpartition(".")[2] for name in names}, n=3, cutoff=0.5)
            raise RecipeError(
                f"{printable(entry)!r} matches no parameter; near names: {', '.join(close) or 'none'}",
                field="target_parameters",
            )
