"""Promises: what an operation claims to preserve, stated before it runs and measured afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, IntEnum, auto


class PromiseClass(IntEnum):
    """How strong a promise is; a smaller number is a stronger promise."""

    BITWISE = 0
    EXACT = 1
    ROUNDED = 2
    BOUNDED = 3
    INTENTIONAL = 4

    @property
    def word(self) -> str:
        """The name as recipes and reports write it."""
        return self.name.lower()


class Scope(Flag):
    """What of the outputs is compared with the source: everything, less what an operation changes on purpose.

    ``BACKBONE``: the hidden states of the base model, since the class or its head is another. ``MEASURE``: differences are
    figures and no failure. ``NOTHING``: the source is not what the result is to be compared with. ``REORDERED``: sums may be taken in
    another order, so that outputs are compared in float64, and those in their own dtype are figures.
    """

    EVERYTHING = 0
    BACKBONE = auto()
    MEASURE = auto()
    NOTHING = auto()
    REORDERED = auto()

    @property
    def in_float64(self) -> bool:
        """Whether it is float64 in which outputs have to be equal."""
        return Scope.REORDERED in self and not self & (Scope.MEASURE | Scope.NOTHING)

    @property
    def same_outputs(self) -> bool:
        """Whether every output is what it was, but for the order of sums."""
        return not self & ~Scope.REORDERED


#: The domain that holds no condition; beside another domain it says nothing.
EVERY_INPUT = "every input"


@dataclass(frozen=True, slots=True)
class Promise:
    """One operation's promise: the class, what is observed, over which inputs, and what it assumes."""

    strength: PromiseClass
    observable: str
    domain: str
    assumptions: tuple[str, ...] = ()

    @property
    def claim(self) -> str:
        """What is promised, without how strongly."""
        return "; ".join((f"{self.observable}, for {self.domain}", *self.assumptions))

    def sentence(self) -> str:
        """The promise in one line."""
        return f"{self.strength.word}: {self.claim}"
