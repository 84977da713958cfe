"""What mkdocs calls to make the site.

README.md and the recipes, which lie beside docs/, become files of it, and formulas become MathML, which browsers show by themselves.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent

#: The address in the site of README.md, which is a page of its own there.
README = "readme.md"

#: A link to a page or picture of docs/, as README.md writes it, with what stands before it.
_INTO_DOCS = re.compile(r'(\]\(|src=")docs/')

#: A link out of docs/ to what the site has inside, with the steps that lead up to docs/.
_BESIDE_DOCS = re.compile(r"\]\(((?:\.\./)*)\.\./(README\.md|recipes/)")

#: A formula as pymdownx.arithmatex leaves it.
_FORMULA = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md and each recipe."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, README, content=_INTO_DOCS.sub(r"\1", text)))
    for recipe in sorted((ROOT / "recipes").glob("*.yaml")):
        files.append(File.generated(config, f"recipes/{recipe.name}", content=recipe.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs' names
    """Let links out of docs/ lead to the copies in the site."""
    return _BESIDE_DOCS.sub(lambda found: f"]({found[1]}{README if found[2] == 'README.md' else found[2]}", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn each formula into MathML."""
    return _FORMULA.sub(lambda found: convert(html.unescape(found[1])), content)
