"""What the arithmetic of the checkpoint's own dtype does by itself, beside what the surgery did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftkit.report.page.markup import joined, tag
from graftkit.report.page.numbers import count, number
from graftkit.report.page.section import Section, table

#: The runs that are no null runs, as the lens names them.
_SOURCE, _RESULT = "source", "result"


def noise(report: Mapping[str, Any]) -> Section | None:
    """A table of runs: error against float64, its ratio to the source's own, KL and changed top-1 ids; then KL by probe."""
    lens = (report.get("checks") or {}).get("lens")
    runs = ((lens or {}).get("noise") or {}).get("runs")
    if not lens or not runs:
        return None
    columns = [("run", ""), ("error", "n"), ("rho", "n"), ("mean KL", "n"), ("99 % KL", "n"), ("max KL", "n"),
               ("top-1 flips", "n"), ("beyond noise", "n")]  # fmt: skip
    probes = [(p["probe"], count(p["positions"]), number(p["mean"]), number(p["max"]), count(p["flips"]))
              for p in lens["noise"]["probes"]]  # fmt: skip
    heads = [("probe", ""), ("positions", "n"), ("mean KL", "n"), ("max KL", "n"), ("top-1 flips", "n")]
    by_probe = joined(tag("h3", "Result by probe", class_="apart"), table(heads, probes)) if probes else None
    body = joined(table(columns, [_row(run) for run in runs]), by_probe)
    return Section("noise", "Noise of the arithmetic", _lead(lens["dtype"], runs), body)


def _row(run: Mapping[str, Any]) -> tuple[object, ...]:
    found = run.get("divergence")
    name = tag("strong", run["run"]) if run["run"] == _RESULT else run["run"]
    first = (name, _number(run["error"]), _number(run["rho"]))
    if not found:
        return (*first, "–", "–", "–", "–", "–")
    kl = (_number(found["mean"]), _number(found["quantiles"].get("0.99")), _number(found["max"]))
    return (*first, *kl, count(found["flips"]), count(found["flips_beyond_noise"]))


def _number(value: Any) -> str:
    return number(None if value is None else float(value))


def _lead(dtype: str, runs: list[Mapping[str, Any]]) -> str:
    rho = {run["run"]: run["rho"] for run in runs}
    nulls = [run["rho"] for run in runs if run["run"] not in (_SOURCE, _RESULT, "result in float64") and run["rho"]]
    said = f"rho is the error of a run against float64, over that of the source in {dtype}."
    if _RESULT not in rho:
        return said
    beside = f" Runs that change nothing have up to {_number(max(nulls))}." if nulls else ""
    return f"The result's rho is {_number(rho[_RESULT])}.{beside} {said[0].upper()}{said[1:]}"
