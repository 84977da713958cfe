"""The top of the page: verdict, promise, recipe, and the few figures that stand for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.report.page.markup import Markup, joined, lines, tag
from graftkit.report.page.numbers import count, number
from graftkit.report.page.section import chip
from graftkit.report.size import size

#: What each class of promise means, in a reader's words.
MEANING = {
    "bitwise": "the same bits come out for every old input",
    "exact": "equal over the real numbers, and every stored value is exact",
    "rounded": "equal over the real numbers; stored values had to be rounded",
    "bounded": "the change stays under a proven bound",
    "intentional": "behaviour is meant to change; differences are figures",
}

#: So many new tokens are named at the top.
NAMED = 12


def head(report: Mapping[str, Any]) -> Markup:
    """Verdict, promise, figures and recipe; of a plan, what is promised."""
    promise, planned = report["promise"], bool(report.get("planned"))
    partial = not planned and report.get("outputs") is None and not report.get("checks")
    word, kind = ("Planned", "plain") if planned else ("Verified in part", "doubt") if partial else ("Verified", "good")
    strength = promise["strength"]
    verdict = tag(
        "div",
        tag(
            "p", tag("span", word, class_=f"badge {kind}"), tag("span", strength, class_="badge plain"), class_="badges"
        ),
        tag("p", _sentence(promise), class_="promise"),
        tag("p", f"{strength}: {MEANING.get(strength, '')}", class_="note"),
        *(tag("p", f"Assuming {assumption}.", class_="note") for assumption in promise.get("assumptions", ())),
        tag("p", f"Outputs were not compared: {report.get('outputs_not_compared')}.", class_="note")
        if partial
        else None,
        not_covered(report),
        class_="verdict",
    )
    numbers = tag("dl", *figures(report), class_="figures")
    overview = tag("div", _recipe(report), tag("div", numbers, _tokens(report), _notes(report)), class_="overview")
    return joined(_title(report), verdict, overview)


def not_covered(report: Mapping[str, Any]) -> Markup | None:
    """What applies to the model and was not covered, beside the verdict; reports of older releases do not say."""
    lost = report.get("not_covered")
    return tag("p", f"Not covered: {', '.join(lost)}.", class_="note") if lost else None


def _sentence(promise: Mapping[str, Any]) -> str:
    lead = "Changed on purpose:" if promise["strength"] == "intentional" else "Preserves"
    return f"{lead} {promise['observable']}, for {promise['domain']}."


def name_of(place: object) -> str:
    """The last part of a path or a hub id."""
    return str(place).rstrip("/").rpartition("/")[2] or str(place)


def _title(report: Mapping[str, Any]) -> Markup:
    source = report["source"]
    name = name_of(source["name"])
    where = f"{source['name']} at {source['revision']}" if source.get("revision") else source["name"]
    return tag(
        "div", tag("h1", name, " ", tag("span", "grafted")), tag("p", "from ", tag("code", where)), class_="title"
    )


def figures(report: Mapping[str, Any]) -> Iterator[Markup]:
    """The few figures that stand for all."""
    if "comparison" in report:
        yield _figure(count(report["comparison"]["equal"]), "tensors equal")
        yield _figure(count(len(report["changes"]["tensors"])), "tensors that differ")
    ledger = report.get("ledger") or ()
    made = sum(entry["produced_bytes"] for entry in ledger)
    kept = sum(entry["source_bytes"] for entry in ledger)
    if ledger:
        yield _figure(size(kept), "kept byte for byte")
        yield _figure(size(made), "new values")
    if report.get("new_tokens"):
        yield _figure(count(len(report["new_tokens"])), "new tokens")
    outputs = report.get("outputs")
    if not outputs:
        return
    yield _figure(count(sum(outputs["probes"].values())), "probe tokens")
    if outputs.get("comparisons"):
        yield _figure(number(max(float(item["largest"]) for item in outputs["comparisons"])), "largest |Δ| of outputs")
    if outputs.get("distribution"):
        yield _figure(number(outputs["distribution"]["kl_max"]), "worst KL, nats")


def _figure(value: str, label: str) -> Markup:
    return tag("div", tag("dt", label), tag("dd", value))


def _tokens(report: Mapping[str, Any]) -> Markup | None:
    new = [joined(chip(token), tag("small", index)) for token, index in (report.get("new_tokens") or {}).items()]
    renamed = (report.get("renamed_tokens") or {}).items()
    tokens = [*new, *(joined(chip(now["content"]), tag("small", f"was {old}")) for old, now in renamed)]
    if not tokens:
        return None
    shown = tokens[:NAMED]
    more = tag("span", f"and {count(len(tokens) - NAMED)} more", class_="note") if len(tokens) > NAMED else None
    return tag("p", *(tag("span", item, class_="token") for item in shown), more, class_="tokens")


def _recipe(report: Mapping[str, Any]) -> Markup:
    return tag(
        "pre", tag("code", lines(report["recipe"].rstrip("\n"))), id="recipe", aria_label="the recipe", tabindex="0"
    )


def _notes(report: Mapping[str, Any]) -> Markup | None:
    notes = [tag("li", note) for note in report.get("notes", ())]
    return tag("ul", *notes, class_="notes") if notes else None
