"""What was measured of the signal, as rows, sentences and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.errors import plural
from graftkit.verification.checks import Row

#: How many times the noise a mean may lie beyond the band: it is rounded, and so is the end of the band.
ROUNDED = 2


@dataclass(frozen=True, slots=True)
class SignalFigure:
    """One figure of one stack, a value for each block of the result, each the mean over the texts.

    ``before`` is that of the source's block which it is, None for a new one. ``low`` and ``high`` are the smallest and largest
    value that a text has there in the source (for a new block: at its neighbours): its band. ``noise`` is how far the source's
    own figure moves there in a run that changes nothing over the real numbers.
    """

    key: str
    stack: str
    title: str
    caption: str
    log: bool
    before: tuple[float | None, ...]
    after: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    noise: tuple[float, ...]

    @property
    def outside(self) -> tuple[int, ...]:
        """Blocks of the result whose figure leaves the band."""
        return tuple(
            index
            for index, (value, low, high, noise) in enumerate(
                zip(self.after, self.low, self.high, self.noise, strict=True)
            )
            if not low - ROUNDED * noise <= value <= high + ROUNDED * noise
        )

    @property
    def change(self) -> float:
        """The largest relative change of a block that both have."""
        pairs = [(a, b) for a, b in zip(self.before, self.after, strict=True) if a is not None]
        return max((abs(b - a) / abs(a) if a else float(b != a) for a, b in pairs), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; what is not finite becomes None."""
        plain = {
            key: [_finite(item) for item in value] if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }
        return {**plain, "outside": list(self.outside), "change": _finite(self.change)}


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class SignalReport:
    """Signal propagation of source and result on the same texts; ``absent`` says why a figure could not be had.

    ``new_blocks`` names blocks of the result that the source does not have. A figure outside the band is named, and only a value
    that is not finite is a failure: whether a change was meant is for the promise to say.
    """

    texts: int
    tokens: int
    dtype: str
    loss: str
    figures: tuple[SignalFigure, ...]
    new_blocks: tuple[str, ...]
    absent: Mapping[str, str]
    seconds: Mapping[str, float]
    unit: str = "tokens"

    @property
    def name(self) -> str:
        """The key in the report."""
        return "signal"

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for each figure that is finite in the source but not in the result."""
        return tuple(
            f"signal: {figure.title} of {_block(figure, index)} is {value}"
            for figure in self.figures
            for index, value in enumerate(figure.after)
            if not math.isfinite(value) and math.isfinite(figure.before[index] or 0.0)
        )

    @property
    def verdict(self) -> str:
        """One sentence: which blocks leave the band, or that none does."""
        if not self.figures:
            return "Nothing could be measured."
        outside: dict[str, list[str]] = {}
        for figure in self.figures:
            for index in figure.outside:
                outside.setdefault(_block(figure, index), []).append(figure.title.lower())
        if not outside:
            same = all(figure.change == 0 for figure in self.figures) and not self.new_blocks
            return (
                "Every figure of every block is what it was."
                if same
                else "Every block stays in the band that the source's own texts span."
            )
        named = [f"{block} ({', '.join(titles)})" for block, titles in list(outside.items())[:4]]
        more = f" and {len(outside) - 4} more" if len(outside) > 4 else ""
        return f"Outside the band of the source's own texts: {'; '.join(named)}{more}."

    def rows(self) -> Iterator[Row]:
        """The lines that a table shows of it."""
        ran = (
            f"{plural(self.texts, 'text')}, {plural(self.tokens, 'token')}"
            if self.unit == "tokens"
            else f"{self.texts} {self.unit}"
        )
        yield Row("signal", "measured", f"{ran}, {self.dtype}; {self.verdict}")
        for figure in self.figures:
            outside = figure.outside
            result = f"{len(outside)} outside" if outside else "in the band"
            ends = f"{_span(figure.before)} -> {_span(figure.after)} over {plural(len(figure.after), 'block')}"
            where = (
                f"; outside: {', '.join(map(str, outside[:6]))}{', …' if len(outside) > 6 else ''}" if outside else ""
            )
            yield Row(_name(figure), result, f"{ends}, change at most {100 * figure.change:.3g} %{where}")
        for title, reason in self.absent.items():
            yield Row(title, "not measured", reason)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **plain,
            "figures": [figure.to_json() for figure in self.figures],
            "new_blocks": list(self.new_blocks),
            "absent": dict(self.absent),
            "seconds": dict(self.seconds),
            "verdict": self.verdict,
        }


def _name(figure: SignalFigure) -> str:
    return f"{figure.stack} {figure.title}".strip()


def _block(figure: SignalFigure, index: int) -> str:
    return f"{figure.stack} block {index}".strip()


def _span(values: tuple[float | None, ...] | tuple[float, ...]) -> str:
    found = [value for value in values if value is not None]
    return f"{min(found):.3g}..{max(found):.3g}" if found else "-"
