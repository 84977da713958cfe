"""The pages of docs/: one for each operation, with tables that the specs made and recipes that graftkit takes; and the site that they become."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import graftkit
from graftkit.cli import run
from graftkit.errors import RecipeError
from graftkit.operations import IMPLEMENTATIONS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))
import operation_pages  # noqa: E402 - a script beside the package

OPERATIONS = {page.stem: page for page in sorted((DOCS / "operations").glob("*.md")) if page.stem != "index"}
PAGES = [DOCS / "recipe.md", *OPERATIONS.values(), *sorted((DOCS / "tasks").glob("*.md"))]
RUNS = "<!-- runs on the demo model -->"

#: What stands for a full fine-tune of the demo model.
TUNED = {
    "version": 1,
    "base_model": "recipes/models/demo-lm",
    "operations": [
        {"op": "edit_tensors", "steps": [{"scale": {"tensors": [r"model\.layers\.1\..*_proj\.weight"], "factor": 1.5}}]}
    ],
    "output": "out/tuned",
}


def recipes(page):
    """The recipes of a page, each with whether it is said to run on the demo model."""
    found = re.findall(rf"(?:({RUNS})\n)?```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [(bool(runs), text) for runs, text in found]


def loaded(text, folder):
    """A recipe as the command line reads it; operations alone get what a recipe has around them."""
    if "version:" not in text:
        operations = "".join(f"  {line}\n" for line in text.splitlines())
        text = f"version: 1\nbase_model: somewhere\noperations:\n{operations}output: out/somewhere\n"
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return graftkit.load_recipe(file)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what recipes of the pages start from: two adapters, a fine-tune, a model with one table, and files that pages show."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    lora = next(text for _, text in recipes(OPERATIONS["add_lora"]))
    tied = next(text for _, text in recipes(OPERATIONS["set_embeddings"]))
    for page in PAGES:
        for name, text in re.findall(
            r"<!-- file: (\S+) -->\n```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        ):
            (folder / name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for recipe in (lora, lora.replace("out/lora", "out/other"), tied, yaml.safe_dump(TUNED)):
            made = loaded(recipe + "verify: {outputs: false}\n", folder)
            graftkit.apply(made)
    return folder


def test_each_operation_has_its_page_and_no_other_has_one():
    assert set(OPERATIONS) == set(IMPLEMENTATIONS)
    for name, page in OPERATIONS.items():
        assert page.read_text(encoding="utf-8").startswith(f"# {name}\n"), page
        assert any(f"op: {name}\n" in text or f"op: {name}," in text for _, text in recipes(page)), page


def test_every_page_stands_in_the_table_of_contents_once():
    nav = re.findall(r"\b([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert sorted(nav) == sorted([*pages, "readme.md"])  # scripts/site_hooks.py makes the last one
    listed = re.findall(r"\]\((\w+)\.md\)", (DOCS / "operations" / "index.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(IMPLEMENTATIONS)


@pytest.mark.parametrize("page", operation_pages.PAGES, ids=lambda page: page.stem)
def test_tables_of_fields_are_those_of_the_specs(page):
    assert page.read_text(encoding="utf-8") == operation_pages.page_with_fields(page), "run scripts/operation_pages.py"


def test_a_table_names_every_field_and_which_ones_are_required():
    for spec in operation_pages.PAGES.values():
        rows = dict(re.findall(r"^\| `([\w.*]+)` \| (\S.*?) \|", operation_pages.table(spec), re.MULTILINE))
        named = {field.alias or name: field for name, field in spec.model_fields.items() if name != "op"}
        assert {name for name in rows if "." not in name} == set(named)
        assert {name for name in named if rows[name] == "required"} == {
            name for name, field in named.items() if field.is_required()
        }


def test_a_stale_table_is_noticed(tmp_path, monkeypatch):
    page = tmp_path / "cast.md"
    text = OPERATIONS["cast"].read_text(encoding="utf-8")
    page.write_text(text.replace("| `dtype` | required |", '| `dtype` | `"float32"` |'), encoding="utf-8")
    monkeypatch.setitem(operation_pages.PAGES, page, operation_pages.PAGES[OPERATIONS["cast"]])
    assert page.read_text(encoding="utf-8") != operation_pages.page_with_fields(page) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_recipes_of_the_pages_are_accepted_and_can_be_planned_where_they_say_so(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    shown = recipes(page)
    assert shown or page.stem == "cannot"
    for runs, text in shown:
        recipe = loaded(text, workplace)
        if runs:
            graftkit.plan(recipe)


TASKS = [page for page in PAGES if page.parent.name == "tasks" and page.stem != "cannot"]


@pytest.mark.parametrize("verified", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["bytes", "all"])
@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.stem)
def test_the_recipes_of_the_tasks_are_applied(page, verified, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    applied = [text for runs, text in recipes(page) if runs]
    assert applied
    for text in applied:
        (workplace / "task.yaml").write_text(
            text if verified else f"{text}verify: {{outputs: false}}\n", encoding="utf-8"
        )
        assert run(["apply", "task.yaml", "--overwrite"]) == 0, capsys.readouterr().err
        assert "written to out/" in capsys.readouterr().out


def test_a_field_that_is_not_there_is_noticed(tmp_path):
    with pytest.raises(RecipeError, match="unknown field"):
        loaded("- {op: cast, dtype: float32, kept: ['*norm*']}\n", tmp_path)


def test_links_of_the_pages_lead_to_files():
    for page in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page}: {link}"


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)], page.name
