"""The promise of a recipe, from those of its operations; and whether what was measured is as strong as what was promised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graftkit.verification.outputs import OutputsReport
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope


def compose(promises: Sequence[tuple[Promise, Scope]]) -> Promise:
    """The promise of operations one after the other: the weakest class, the narrowest observable, every domain and assumption.

    Of two promises of one class, the one that holds for the backbone alone is the narrower: it gives the observable, since
    the logits that the other speaks of are those of a new head.
    """
    narrowest, _ = max(promises, key=lambda item: (item[0].strength, Scope.BACKBONE in item[1]))
    domains = dict.fromkeys(promise.domain for promise, _ in promises if promise.domain != EVERY_INPUT) or {
        EVERY_INPUT: None
    }
    assumptions = dict.fromkeys(a for promise, _ in promises for a in promise.assumptions)
    return Promise(narrowest.strength, narrowest.observable, "; and ".join(domains), tuple(assumptions))


def measured_class(outputs: OutputsReport | None, promise: Promise) -> PromiseClass | None:
    """The strongest class that the comparison of outputs allows; None where none was made.

    Nor where differences were only measured and more is promised: the operation's own check speaks of that.

    ``bitwise`` where every output is; ``exact`` where float64 tells, whose failures stop everything; ``rounded`` where each
    differs by no more than another order of summation explains; ``intentional`` where they differ further, or in shape.
    """
    if outputs is None or not outputs.comparisons:
        return None
    if all(item.bitwise for item in outputs.comparisons):
        return PromiseClass.BITWISE
    if outputs.in_float64:
        return PromiseClass.EXACT
    within = all(item.bitwise or 0 < item.largest <= item.allowed for item in outputs.comparisons)
    found = PromiseClass.ROUNDED if within else PromiseClass.INTENTIONAL
    return None if outputs.measured and found > promise.strength else found


def weaker_than_promised(promise: Promise, outputs: OutputsReport) -> Iterator[str]:
    """Yield a sentence where the class that was measured is weaker than the promised one.

    A difference within the tolerance of an assumption that the promise names is no weaker measurement, and where differences
    were only measured, the operation's own check speaks instead.
    """
    found = measured_class(outputs, promise)
    if found is None or found <= promise.strength:
        return
    if found is PromiseClass.ROUNDED and promise.assumptions:
        return
    yield f"outputs: promised was {promise.strength.word}, measured is {found.word}: {_widest(outputs)}"


def _widest(outputs: OutputsReport) -> str:
    items = [item for item in outputs.comparisons if not item.bitwise]
    worst = max(items, key=lambda item: item.largest)
    return f"{worst.name} differs by {worst.largest:.3g} on probe {worst.first!r}"
