"""The report of an applied recipe: what was done, what was promised, what was measured; and the files that hold it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.adapter import FOLDER
from graftkit.recipe import ReplaceHead, dump_recipe
from graftkit.recipe.head_schemes import HeadZeros
from graftkit.report.adapter_card import adapter_card
from graftkit.report.lost_coverage import lost_coverage, not_covered
from graftkit.report.manifest import write_manifest
from graftkit.report.model_card import model_card
from graftkit.report.page import render_top
from graftkit.report.plan_json import promise_json, source_json
from graftkit.report.size import size
from graftkit.report.snippets import Written, adapter_snippets, dcp_snippet, trainer_snippets
from graftkit.report.terminal import report_text
from graftkit.report.unchecked import unchecked
from graftkit.report.versions import versions
from graftkit.verification.checks import Row, find_kind
from graftkit.verification.composition import measured_class
from graftkit.verification.outputs import OutputsReport
from graftkit.verification.tokens.tokenization import TokenizationReport

if TYPE_CHECKING:
    from graftkit.planned import Plan
    from graftkit.verification.checks import Finding
    from graftkit.verification.structural import LedgerEntry

RECIPE = "graft_recipe.yaml"


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What an applied recipe did and what was measured on the directory that was written.

    ``by_ranks`` is what each process did to run the models, where there were several.
    """

    plan: Plan
    ledger: tuple[LedgerEntry, ...]
    findings: tuple[Finding, ...]
    figures: Mapping[str, Any]
    by_ranks: Mapping[str, Any] | None = None

    @property
    def tokenization(self) -> tuple[TokenizationReport, ...]:
        """What was found of the tokenizer, where it was changed."""
        return tuple(finding for finding in self.findings if isinstance(finding, TokenizationReport))

    @property
    def outputs(self) -> OutputsReport | None:
        """What the comparison of outputs found, None where there was none."""
        return find_kind(self.findings, OutputsReport)

    @property
    def checks(self) -> tuple[Finding, ...]:
        """The other findings: of the operations' own checks, and of what was asked for."""
        return tuple(f for f in self.findings if not isinstance(f, OutputsReport | TokenizationReport))

    @property
    def verdict(self) -> str:
        """One line: what was verified, and what was left out."""
        promise = self.plan.promise
        if self.outputs is None and (not self.checks or self.plan.cannot_run):
            return f"verified: bytes and tokenizer; outputs were not compared ({self.not_compared}); promised {promise.sentence()}"
        return f"verified ({promise.strength.word}): {promise.claim}{not_covered(self.lost)}"

    @property
    def lost(self) -> tuple[str, ...]:
        """What applies to the model and was not covered by the checks that were asked for."""
        return lost_coverage(self.outputs, self.checks)

    @property
    def not_compared(self) -> str:
        """Why the outputs of the base were not compared; empty where they were."""
        if self.outputs is not None:
            return ""
        if not self.plan.recipe.verify.outputs:
            return "verify.outputs is off"
        if self.plan.cannot_run:
            return self.plan.cannot_run
        return "the base is unchanged" if not self.plan.writes_base else "compared with base and adapter instead, below"

    def rows(self) -> Iterator[Row]:
        """Yield ``(check, result, figure)`` for everything that was checked, in order."""
        produced = sum(entry.produced_bytes for entry in self.ledger)
        kept = sum(entry.source_bytes for entry in self.ledger)
        finite = "" if self.plan.recipe.allow_nonfinite else ", all finite"
        parts = {"equal to the source": kept, "as computed": produced}
        shown = ", ".join(f"{size(count)} {what}" for what, count in parts.items() if count)
        yield Row("bytes", "equal", f"{shown or 'none'}{finite}")
        for tokens in self.tokenization:
            yield from tokens.rows()
        if self.outputs is None:
            yield Row("outputs", "not compared", self.not_compared)
        else:
            yield from self.outputs.rows()
        if (found := measured_class(self.outputs, self.plan.promise)) is not None:
            yield Row("promise", f"{found.word} measured", f"{self.plan.promise.strength.word} promised")
        for check in self.checks:
            yield from check.rows()

    @property
    def snippets(self) -> str:
        """Lines to paste into the common trainers' configs; of a model in memory those for its new rows alone."""
        from graftkit.architecture.accounting import account
        from graftkit.architecture.layers import layer_list
        from graftkit.architecture.skeleton import architecture_of

        adapter = self.plan.adapter
        labels = len(self.plan.result.config.get("id2label") or "01")
        if adapter is not None and self.plan.in_memory:
            return ""
        if adapter is not None:
            base = self.plan.recipe.output if self.plan.writes_base else self.plan.source.name
            written = f"{self.plan.recipe.output}/{FOLDER}"
            noted = (adapter.config.get("auto_mapping") or {}).get("base_model_class")
            name = noted or architecture_of(self.plan.result.config)
            beside = bool(self.plan.result.value_head)
            return adapter_snippets(base, written, name, adapter.config, labels, value_head=beside)
        if self.plan.recipe.output_format == "dcp" and not self.plan.in_memory:
            return dcp_snippet(self.plan.recipe.output)
        structure = account(self.plan.result)
        grown = [
            structure.memory[change.name].name
            for change in self.plan.tensors
            if change.kind in ("patched", "trimmed", "gathered")
            and change.produced
            and len(change.new_shape or ()) == 2
        ]
        modules = [
            name.removesuffix(".weight").rpartition(".")[2] for name in grown if name in structure.skeleton.shapes
        ]
        ids = tuple(self.plan.vocabulary.untrained) if self.plan.vocabulary else ()
        output = None if self.plan.in_memory else self.plan.recipe.output
        blocks = self.plan.correspondence.blocks
        path = layer_list(structure.skeleton).path if blocks else ""
        checkpoint = Written(
            structure.skeleton.architecture, tuple(modules), ids, labels, _has_zero_head(self.plan),
            sentences="modules.json" in self.plan.result.carried,
            new_blocks=tuple(f"{path}.{place}" for place in blocks.fresh) if blocks else (),
            value_head=bool(self.plan.result.value_head),
        )  # fmt: skip
        return trainer_snippets(output, checkpoint)

    def to_json(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        plan = self.plan
        found = {
            "graftkit": 1,
            "in_memory": plan.in_memory,
            "verdict": self.verdict,
            "promise": promise_json(plan, measured_class(self.outputs, plan.promise), _kl_json(plan)),
            "source": source_json(plan),
            "inputs": dict(plan.inputs),
            "request": plan.request.to_json() if plan.request is not None else None,
            "versions": versions(),
            "recipe": dump_recipe(plan.recipe),
            "new_tokens": dict(plan.new_tokens),
            "renamed_tokens": _renamed_json(plan),
            "correspondence": dataclasses.asdict(plan.correspondence),
            "notes": list(plan.notes),
            "figures": dict(self.figures),
            "changes": {
                "tensors": [dataclasses.asdict(change) for change in plan.tensors],
                "values": [dataclasses.asdict(change) for change in plan.values],
            },
            "ledger": [dataclasses.asdict(entry) for entry in self.ledger],
            "tokenization": [dataclasses.asdict(found) for found in self.tokenization],
            "outputs": self.outputs.to_json() if self.outputs is not None else None,
            "outputs_not_compared": self.not_compared,
            "checks": {check.name: check.to_json() for check in self.checks},
            "adapter": self._adapter_json(),
            "not_covered": list(self.lost),
            "checked": [row._asdict() for row in self.rows()],
        }
        found |= {} if self.by_ranks is None else {"by_ranks": dict(self.by_ranks)}
        return {**found, "not_checked": [{"what": what, "why": why} for what, why in unchecked(found)]}

    def __repr__(self) -> str:
        """What `graftkit apply` prints behind the plan."""
        return report_text(self)

    def _repr_html_(self) -> str:
        """The top of the page, for notebooks."""
        return render_top(self.to_json())

    def _adapter_json(self) -> dict[str, Any] | None:
        adapter = self.plan.adapter
        return {"config": dict(adapter.config), "bytes": adapter.nbytes} if adapter else None


def _has_zero_head(plan: Plan) -> bool:
    """Whether the last new head of the recipe begins with zeros."""
    heads = [operation for operation in plan.recipe.operations if isinstance(operation, ReplaceHead)]
    return bool(heads) and isinstance(heads[-1].init, HeadZeros)


def _renamed_json(plan: Plan) -> dict[str, Any]:
    renamed = plan.vocabulary.renamed if plan.vocabulary else {}
    return {old: dataclasses.asdict(now) for old, now in renamed.items()}


def plan_html(plan: Plan) -> str:
    """The top of the page that applying a plan would give, for notebooks: what is planned and what is promised."""
    return render_top(
        {
            "planned": True,
            "promise": promise_json(plan),
            "source": source_json(plan),
            "recipe": dump_recipe(plan.recipe),
            "new_tokens": dict(plan.new_tokens),
            "notes": list(plan.notes),
        }
    )


def _kl_json(plan: Plan) -> dict[str, Any] | None:
    """The promised bound on the KL; a mean of some rows is given as what it is too, a convex combination of old ones."""
    vocabulary = plan.vocabulary
    kl = vocabulary.kl() if vocabulary and plan.scope.same_outputs else None
    if kl is None:
        return None
    return (
        {"kind": "mean", "rows_averaged": kl.rows_averaged}
        if kl.averaged is None and kl.kind == "mean"
        else {"kind": "convex"}
    )


def write_report(report: Report, plan: Plan, directory: Path) -> None:
    """Write the model card and that of the adapter, the resolved recipe, the report, which is the manifest, and its page."""
    (directory / "README.md").write_text(model_card(report, plan), encoding="utf-8", errors="backslashreplace")
    if plan.adapter is not None:
        card = adapter_card(report, plan, plan.adapter.config)
        (directory / FOLDER / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    (directory / RECIPE).write_text(dump_recipe(plan.recipe), encoding="utf-8", errors="backslashreplace")
    write_manifest(report.to_json(), directory)
