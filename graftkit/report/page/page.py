"""The whole page: one self-contained file, made from the report's JSON and from nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from graftkit.checkpoint.documents import read_report
from graftkit.checkpoint.durable import replace_file
from graftkit.errors import InputRejected, printable
from graftkit.report.page.comparison_head import comparison_head
from graftkit.report.page.foot import not_checked, provenance
from graftkit.report.page.head import head
from graftkit.report.page.markup import Markup, frame, joined, tag
from graftkit.report.page.sections import SECTIONS

REPORT = "graft_report.json"
PAGE = "graft_report.html"

#: Pixels that the frame of a notebook is high; what is longer scrolls.
TOP_HEIGHT = 560

#: The two halves of a disc, for the button that turns the theme over.
_DISC = '<svg viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="6.25"/><path d="M8 1.75a6.25 6.25 0 0 1 0 12.5z"/></svg>'


def render_page(report: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    It asks nothing of the network, and its content security policy forbids that too: only the script and the style whose
    digests stand there may run.

    Raises:
        InputRejected: the mapping is no report of graftkit.
    """
    try:
        sections = [section for render in SECTIONS.values() if (section := render(report)) is not None]
        parts = [*sections, not_checked(report), provenance(report)]
        body = joined(_bar(), tag("main", _top(report), _contents(parts), *(part.html() for part in parts)))
        return _document(report, body)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise InputRejected(
            f"{REPORT}: is not a report of graftkit: {type(error).__name__} {printable(error)}"
        ) from error


def render_top(report: Mapping[str, Any]) -> str:
    """The top of the page for a notebook: in a frame, so that its style reaches nothing else.

    ``report`` may be that of a plan, which says so by ``planned``.
    """
    return frame(_document(report, tag("main", _top(report))), height=TOP_HEIGHT)


def _top(report: Mapping[str, Any]) -> Markup:
    return comparison_head(report) if "comparison" in report else head(report)


def _document(report: Mapping[str, Any], body: Markup) -> str:
    """The whole HTML document, titled by the name of the source."""
    name = str(report["source"]["name"]).rpartition("/")[2]
    what = "compared" if "comparison" in report else "planned" if report.get("planned") else "grafted"
    return f"<!doctype html>\n{tag('html', _head(f'{name}, {what}'), tag('body', body), lang='en')}\n"


def write_page(directory: Path) -> Path:
    """Make the page in ``directory`` again from the report that lies there, and return its path.

    Raises:
        InputRejected: there is no report, or it cannot be read as one.
    """
    if not (directory / REPORT).exists():
        raise InputRejected(f"{printable(directory)}: has no {REPORT}; graftkit apply writes one")
    try:
        report: Any = read_report(directory, REPORT)
        text = render_page(report)
    except InputRejected as error:
        raise InputRejected(f"{printable(directory)}: {error}") from error
    page = directory / PAGE
    replace_file(page, text.encode("utf-8", "backslashreplace"))
    return page


@functools.cache
def _asset(name: str) -> Markup:
    return Markup(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _head(title: str) -> Markup:
    style, script = _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
        tag("script", script),
    )


def _bar() -> Markup:
    toggle = tag(
        "button", Markup(_DISC), type="button", id="theme", aria_label="turn the theme over", title="light or dark"
    )
    return tag("div", tag("span", "graftkit report"), toggle, class_="bar")


def _contents(parts: list[Any]) -> Markup:
    links = [tag("a", part.key.replace("-", " "), href=f"#{part.key}") for part in parts]
    return tag("nav", *links, aria_label="sections")
