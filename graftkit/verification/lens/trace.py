"""Layer by layer: what every module of the source gives, beside what the module of the same name gives in the result.

The source runs first on one batch and what its modules give is kept; then the result runs on the same batch and each tensor is compared
as it appears and let go. Memory is that of one batch; :func:`tokens_that_fit` says how many tokens a batch may have.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.running.split.together import TAKES_REMOTE, at_owner, marked, parameter
from graftkit.verification.comparison import paired
from graftkit.verification.lens.gap import gap

#: Bytes of module outputs that are kept of one batch.
KEPT_BYTES = 768 << 20

#: A tensor as long as somebody else holds it.
Ref = weakref.ReferenceType[Tensor]

#: Bytes of rows of a parameter that are compared at a time.
ROWS_BYTES = 32 << 20


@dataclass(slots=True)
class ModuleGap:
    """The largest relative difference seen at one module's output in its ``call``-th call, and the probe it was seen on.

    ``unlike`` tells why an output could not be compared.
    """

    name: str
    call: int
    largest: float = 0.0
    probe: str = ""
    unlike: str = ""


@dataclass(slots=True)
class Trace:
    """Every module's gap by name and call, in the order in which the source calls them; the model itself has no name."""

    calls: dict[tuple[str, int], ModuleGap] = field(default_factory=dict)

    def expect(self, calls: Iterable[tuple[str, int]]) -> None:
        """Take up calls of the source in their order."""
        for name, call in calls:
            self.calls.setdefault((name, call), ModuleGap(name, call))

    def note(self, key: tuple[str, int], found: float, probe: str) -> None:
        """Keep the largest."""
        entry = self.calls[key]
        if found > entry.largest:
            entry.largest, entry.probe = found, probe

    def leave_out(self, key: tuple[str, int]) -> None:
        """Say nothing of a call whose output has an axis of another size, where nothing tells which index is which."""
        self.calls.pop(key, None)

    def first(self, threshold: float) -> ModuleGap | None:
        """The first call whose output differs by more than ``threshold``."""
        return next((entry for entry in self.calls.values() if entry.largest > threshold or entry.unlike), None)

    def by_module(self) -> dict[str, float]:
        """The largest gap of each module over its calls, in the order of their first ones."""
        found: dict[str, float] = {}
        for entry in self.calls.values():
            found[entry.name] = max(found.get(entry.name, 0.0), math.inf if entry.unlike else entry.largest)
        return found


#: What a call of a module gave, by the place in what it returns, such as ``hidden_states.3``; the only tensor has no name.
Given = dict[str, Tensor]

#: What each call of a module gave: ``(module, call) -> tensors``, in the order of the calls.
Record = dict[tuple[str, int], Given]


class Hooks:
    """Calls ``see(name, tensors)`` after each module of ``model`` has run, innermost first. Use as a context manager.

    No mode rewrites what ``see`` calls. What a module inside of a block gave that another rank ran stays there, and is compared there.
    """

    def __init__(self, model: nn.Module, see: Callable[[str, Given], None]) -> None:
        self._model, self._see = model, see
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            look = marked(lambda _, __, output, name=name: self._look(name, output), TAKES_REMOTE)
            self._hooks.append(module.register_forward_hook(look))
        return self

    def _look(self, name: str, output: Any) -> None:
        with torch._C.DisableTorchFunction():  # noqa: SLF001
            self._see(name, dict(tensors_in(output)))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating tensors of a module's output with their places: itself, or those of a tuple, list or mapping.

    Caches are left out.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield name, value
    elif isinstance(value, dict | tuple | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))


def record(model: nn.Module, run: Callable[[], Any]) -> tuple[Record, Any]:
    """What each call of a module gives in ``run()``, and what ``run()`` returns.

    Kept are the tensors themselves; where one was written to later, ``run()`` is called again and copies are kept.
    """
    kept, returned, versions = _recorded(model, run, lambda tensor: tensor)
    if any(tensor._version != version for tensor, version in versions):  # noqa: SLF001
        del kept, returned, versions
        kept, returned, _ = _recorded(model, run, lambda tensor: tensor.clone())
    return kept, returned


def _recorded(
    model: nn.Module, run: Callable[[], Any], keep: Callable[[Tensor], Tensor]
) -> tuple[Record, Any, list[tuple[Tensor, int]]]:
    """As :func:`record`, and every tensor that was kept with its version then."""
    kept: Record = {}
    times: Counter[str] = Counter()
    versions: list[tuple[Tensor, int]] = []

    def see(name: str, found: Given) -> None:
        kept[name, times[name]] = copies = {key: keep(tensor) for key, tensor in found.items()}
        versions.extend((tensor, tensor._version) for tensor in copies.values())  # noqa: SLF001
        times[name] += 1

    with Hooks(model, see):
        returned = run()
    return kept, returned, versions


def compare(
    model: nn.Module, run: Callable[[], Any], kept: Record, trace: Trace, probe: str,
    correspondence: Correspondence = IDENTITY, gaps: Gaps | None = None,
) -> Any:  # fmt: skip
    """Run the result, compare each module's output with what was kept of the source, and return what ``run()`` does.

    Modules that only one of the two has are left out: what they do shows in the next module that both have.
    """
    trace.expect(key for key in kept if correspondence.module_in_result(key[0]) is not None)
    gaps = Gaps() if gaps is None else gaps
    times: Counter[str] = Counter()

    def see(given: str, found: Given) -> None:
        name = correspondence.module_in_source(given)
        if name is None:
            return
        key = (name, times[name])
        times[name] += 1
        if key in kept:
            _compare_call(trace, key, kept.pop(key), found, probe, correspondence, gaps)

    with Hooks(model, see):
        return run()


def _compare_call(
    trace: Trace, key: tuple[str, int], old: Given, new: Given, probe: str, correspondence: Correspondence, gaps: Gaps
) -> None:
    pairs, alone = paired(old, new, correspondence.inside(key[0]))
    if alone:
        trace.calls[key].unlike = f"gives {len(new)} tensors, gave {len(old)}"
        return
    for name, other in pairs.items():
        found = gaps(key[0], old[name], new[other], correspondence)
        if found is None and correspondence.is_near_width(key[0]):
            trace.leave_out(key)
            return
        if found is None:
            trace.calls[key].unlike = f"gives {list(new[other].shape)}, gave {list(old[name].shape)}"
            return
        trace.note(key, found, probe)


class Gaps:
    """Gaps between tensors; that of a pair which several modules give is computed once, as long as both tensors live."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], tuple[Ref, Ref, tuple[int, int], float]] = {}

    def __call__(self, module: str, old: Tensor, new: Tensor, correspondence: Correspondence) -> float | None:
        """The gap of the corresponding entries of what a ``module`` of the source gives; None where the shapes differ."""
        key, versions = (id(old), id(new)), (old._version, new._version)  # noqa: SLF001
        if key in self._found:
            first, second, known, value = self._found[key]
            if first() is old and second() is new and known == versions:
                return value
        found = at_owner(_gap_of_entries, module, old, new, correspondence)
        if found is not None:
            self._found[key] = weakref.ref(old), weakref.ref(new), versions, found
        return found


def _gap_of_entries(module: str, old: Tensor, new: Tensor, correspondence: Correspondence) -> float | None:
    pair = correspondence.entries(module, old, new)
    return None if pair is None else gap(*pair)


def own_differences(
    source: nn.Module, result: nn.Module, name: str, correspondence: Correspondence = IDENTITY
) -> tuple[str, ...]:
    """Names of the parameters and buffers of one module of the source itself whose bytes differ; rows of new ids are left out."""
    try:
        one, two = source.get_submodule(name), result.get_submodule(correspondence.module_in_result(name) or name)
    except AttributeError:
        return ()
    found = []
    for key, _ in (*one.named_parameters(recurse=False), *one.named_buffers(recurse=False)):
        other = parameter(two, key)  # by name, since a parameter that is paged in is read then
        maps = correspondence.widened(f"{name}.{key}".lstrip("."))
        old = parameter(one, key)
        if maps is not None and isinstance(other, Tensor) and maps.fits(old.shape, other.shape):
            old, other = maps.pair(old, other)
        if not isinstance(other, Tensor) or not _equal(old, other, correspondence):
            found.append(f"{name}.{key}")
    return tuple(found)


def _equal(old: Tensor, new: Tensor, correspondence: Correspondence) -> bool:
    """Whether the same values stand in both where their rows correspond; a bounded piece of the rows at a time."""
    runs = correspondence.runs_of_rows(old, new)
    if old.shape[1:] != new.shape[1:] or runs is None:
        return False
    if not old.ndim:
        return torch.equal(old, new)
    step = max(ROWS_BYTES // (old[:1].nbytes or 1), 1)
    return all(
        torch.equal(
            old[start + first : start + min(first + step, count)], new[place + first : place + min(first + step, count)]
        )
        for place, start, count in runs
        for first in range(0, count, step)
    )


def tokens_that_fit(kept: Iterable[Tensor], tokens: int, room: float = KEPT_BYTES, least: int = 8) -> int:
    """How many tokens one batch may have so that ``room`` bytes hold it, from what a batch of ``tokens`` made its modules give.

    ``least`` is taken where not even that many fit.
    """
    nbytes: int = sum({id(tensor): tensor.numel() * 8 for tensor in kept}.values())
    return max(int(room) * tokens // max(nbytes, 1), least)
