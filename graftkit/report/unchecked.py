"""What a report does not show: everything that was not run, not covered or not promised, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def unchecked(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(what, why)`` for a report's JSON; the page, the terminal and the model card list the same."""
    return [*_outputs(report), *_adapter(report), *_asked_for(report), *_figures(report), *_always(report)]


def _outputs(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    outputs = report.get("outputs")
    if outputs is None:
        yield "Outputs", f"not compared: {report.get('outputs_not_compared') or 'no figures in the report'}"
        return
    for name, reason in (outputs.get("skipped") or {}).items():
        yield f"Probe {name!r}", f"the source refuses it: {reason}"
    if outputs.get("not_kept"):
        yield f"{outputs['not_kept']} outputs", "left out of the comparison for want of memory"
    cached = outputs.get("cached_decoding") or "covered"
    if cached.startswith("not covered"):
        yield "Cached decoding", cached.removeprefix("not covered: ")
    if outputs.get("ids_covered", 0) < outputs.get("ids", 0):
        yield (
            "Old token ids",
            f"{outputs['ids_covered']:,} of {outputs['ids']:,} stood in a probe; the others were not run",
        )


def _adapter(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = (report.get("checks") or {}).get("adapter") or {}
    if found.get("not_compared"):
        yield "Base with adapter", f"not run: {found['not_compared']}"
    gradients = found.get("gradients") or {}
    for key, why in (
        ("unreached", "the probes do not run them"),
        ("blocked", "none arrives at them, in the base either"),
        ("without", "none at steps 0 and 1"),
    ):
        names = list(gradients.get(key) or ())
        if names:
            more = f", … ({len(names)} in all)" if len(names) > 3 else ""
            yield f"Gradients of {', '.join(names[:3])}{more}", why
    for name, count in (gradients.get("unrouted") or {}).items():
        yield f"Gradients of {count} experts of {name}", "no token of the probe was sent to them"


def _asked_for(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    checks = report.get("checks") or {}
    lens, signal = (
        ("--lens", "--signal") if "comparison" in report else ("verify: {lens: true}", "verify: {signal: true}")
    )
    if not checks.get("lens"):
        yield "True float64", f"{lens} compares module by module in float64"
        yield "Noise of the arithmetic", f"{lens} measures it beside runs that change nothing"
    if not checks.get("signal"):
        yield "Signal before and after", f"{signal} measures it"


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    outputs = report.get("outputs") or {}
    if not report.get("checked"):
        yield "Checks", "the report has no table of them"
    if outputs and not any("hidden_states" in item["name"] for item in outputs.get("comparisons") or ()):
        yield "Difference by layer", "the forward gives no hidden states"
    if "comparison" in report:
        yield "Promise", "there is no recipe, so nothing was promised: B is held to do what A did"
        return
    distribution = outputs.get("distribution")
    if not distribution or not distribution.get("kl"):
        yield "Next-token distribution", "no new ids in the outputs"
    elif distribution.get("bound") is None:
        yield "Bound on the KL", "no bound is known for the chosen initializers; the KL was measured only"
    if not any("new_rows" in found for item in (report.get("figures") or {}).values() for found in _tables(item)):
        yield "New rows against old rows", "no operation adds rows to a vocabulary"
    if not report.get("tokenization"):
        yield "Tokenization", "no operation changes the tokenizer; its files are the source's"
    if not (report.get("changes") or {}).get("values"):
        yield "Config and tokenizer", "no value changed"
    if not report.get("ledger"):
        yield "Tensors", "no tensor was written"


def _tables(operation: Any) -> Iterator[Mapping[str, Any]]:
    for found in operation.values() if isinstance(operation, Mapping) else ():
        if isinstance(found, Mapping):
            yield found


def _always(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if report.get("in_memory"):
        yield "Saving and loading", "nothing was written: graftkit verify compares what save_pretrained writes"
    outputs = report.get("outputs")
    if outputs:
        yield (
            "Other hardware",
            f"everything ran on a CPU ({report['versions']['kernels']}) in {outputs['dtype']}: equal bits are promised where both"
            " run on the same kernels; others may round in another order, but for both alike",
        )
        tokens = sum(outputs.get("probes", {}).values())
        yield (
            "Other inputs",
            f"{tokens:,} tokens were run, and what equal bytes compute on others is inferred from them",
        )
