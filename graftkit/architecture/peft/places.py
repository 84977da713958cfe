"""Where the modules of an adapter lie in a class that names them otherwise: the same, as the loader renames them, or by a prefix."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from graftkit.architecture.peft.adapter_modules import Parts, Shape, modules_of, modules_of_class, split_key
from graftkit.architecture.peft.exchanged_prefix import Exchange, exchanges_for, find_exchanges, fits, older_names
from graftkit.architecture.peft.parts import PREFIX
from graftkit.architecture.skeleton import Skeleton
from graftkit.checkpoint.adapter import Adapter
from graftkit.errors import InputRejected, few, plural, printable

#: Near names that an error shows.
NEAR = 3


@dataclass(frozen=True, slots=True)
class Places:
    """Name of each module in the adapter -> its name in the class.

    ``converted`` are those, by their names in the adapter, whose weights transformers joins with others when it loads them, such as
    each expert's. ``exchange`` is the prefix that was exchanged, if one was, and ``notes`` say what became of the names.
    """

    modules: Mapping[str, str]
    converted: frozenset[str]
    exchange: Exchange | None
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether the class has every name of the adapter."""
        return all(old == new for old, new in self.modules.items())

    def module(self, path: str) -> str:
        """The name in the class of a module of the adapter, or of one that holds some.

        Raises:
            InputRejected: what it holds is not together in the class.
        """
        if path in self.modules:
            return self.modules[path]
        inner = [old for old in self.modules if old.startswith(f"{path}.")]
        outer = {self.modules[old].removesuffix(old[len(path) :]) for old in inner}
        if len(outer) != 1:
            raise InputRejected(f"module {printable(path)!r} is not one module of the new class")
        return outer.pop()

    def weight(self, name: str) -> str:
        """The name in the class of a weight."""
        path, _, leaf = name.rpartition(".")
        return f"{self.module(path)}.{leaf}"

    def key(self, name: str) -> str:
        """The name of a tensor of the adapter's file."""
        path, behind = split_key(name)
        return PREFIX + ".".join((self.modules[".".join(path)], *behind))


def find_places(skeleton: Skeleton, adapter: Adapter, source: Callable[[], Skeleton | None]) -> Places:
    """Find the place of every module of ``adapter`` in the class of ``skeleton``, by names and shapes.

    ``source`` gives the class that the adapter was trained on, as far as that is known: where several places fit, its other modules
    tell which is meant.

    Raises:
        InputRejected: a module finds none, or more than one; the message names it, and the nearest names of the class.
    """
    base, held = modules_of_class(skeleton), modules_of(adapter)
    strange = {path: tensors for path, tensors in held.items() if path not in base}
    older = older_names(skeleton, strange)
    lost = {path: tensors for path, tensors in strange.items() if path not in older}
    exchanges = find_exchanges(base, lost)
    if len(exchanges) > 1:
        exchanges = _most_alike(exchanges, base, source())
    if lost and len(exchanges) != 1:
        raise InputRejected(_no_place(skeleton, base, lost, exchanges))
    exchange = exchanges[0] if exchanges else None
    modules = {}
    for path in held:
        place = exchange.place(path) if path in lost and exchange else path
        name = ".".join(place or path)
        modules[".".join(path)] = older[path].name.removesuffix(".weight") if path in older else name
    converted = frozenset(".".join(path) for path, found in older.items() if found.converted)
    plain = Counter(new for old, new in modules.items() if old not in converted)
    if twice := [name for name, count in plain.items() if count > 1]:
        raise InputRejected(f"holds tensors by old and by new names, of which only one can be meant: {few(twice)}")
    return Places(modules, converted, exchange, tuple(_notes(lost, exchange, older.keys(), converted)))


def _most_alike(
    exchanges: list[Exchange], base: Mapping[Parts, Mapping[str, Shape]], source: Skeleton | None
) -> list[Exchange]:
    """Those of ``exchanges`` by which most modules of ``source`` have their like in ``base``."""
    if source is None:
        return exchanges
    modules = modules_of_class(source)

    def alike(exchange: Exchange) -> int:
        places = ((shapes, exchange.place(path)) for path, shapes in modules.items())
        return sum(place is not None and base.get(place) == shapes for shapes, place in places)

    counts = {exchange: alike(exchange) for exchange in exchanges}
    return [exchange for exchange, count in counts.items() if count == max(counts.values())]


def _no_place(
    skeleton: Skeleton, base: Mapping[Parts, Mapping[str, Shape]], lost: Mapping[Parts, list[tuple[Parts, Shape]]],
    exchanges: list[Exchange],
) -> str:  # fmt: skip
    """Which module of ``lost`` finds no place or several, and what the class has that comes near."""
    if exchanges:
        first = min(lost)
        places = {".".join(place) for exchange in exchanges if (place := exchange.place(first)) is not None}
        return (
            f"module {printable('.'.join(first))!r} of the adapter may be any of {few(places)} in {skeleton.architecture}; rename"
            " the adapter's keys to those of one of them"
        )
    best: tuple[int, Exchange | None] = (0, None)
    for exchange in dict.fromkeys(
        exchange for path in (min(lost), max(lost)) for exchange in exchanges_for(base, path)
    ):
        count = sum(fits(base, path, held, exchange) for path, held in lost.items())
        best = max(best, (count, exchange), key=lambda found: found[0])
    left = [path for path, held in lost.items() if best[1] is None or not fits(base, path, held, best[1])]
    name = ".".join(min(left))
    others = len(lost) - len(left)
    but = f", though {plural(others, 'other module')} would" if others else ""
    near = _near(name, [".".join(path) for path in base])
    among = f" (one of {len(left):,})" if len(left) > 1 else ""
    if any(".".join(path).startswith(f"{name}.") for path in base):
        but += "; there it holds modules of its own, into which peft parts no adapter of fused weights"
    return (
        f"module {printable(name)!r}{among} of the adapter finds no place of its shape in {skeleton.architecture}{but}; nearest"
        f" names: {', '.join(map(printable, near)) or 'none'}"
    )


def _near(name: str, names: list[str]) -> list[str]:
    """The names nearest to ``name``: of those that end as it does, where there are any."""
    last = name.rpartition(".")[2]
    alike = [known for known in names if known.rpartition(".")[2] == last]
    return difflib.get_close_matches(name, alike or names, n=NEAR, cutoff=0.0)


def _notes(
    lost: Collection[Parts], exchange: Exchange | None, older: Collection[Parts], converted: frozenset[str]
) -> Iterator[str]:
    if exchange is not None:
        old, new = (".".join((*prefix, "…")) for prefix in (exchange.old, exchange.new))
        yield f"{plural(len(lost), 'module')} renamed: {printable(old)} is {printable(new)} in the new class"
    if renamed := len(older) - len(converted):
        yield f"{plural(renamed, 'module')} renamed as transformers renames older checkpoints"
    if converted:
        yield f"{plural(len(converted), 'module')} joined into fused weights, as peft converts them"
