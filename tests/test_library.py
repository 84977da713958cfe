"""The library: its public names, its types for callers, and what Python and notebooks show of its values."""

import html
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import here
from support.recipes import recipe

import graftkit
from graftkit.report.page.comparison_head import comparison_head
from graftkit.report.page.head import head

ROOT = Path(__file__).parent.parent

#: What a caller writes, with every type spelled out.
PROGRAM = """
from collections.abc import Mapping
from pathlib import Path

import graftkit


def grow(base: Path, output: Path, tokens: list[str]) -> int:
    recipe: graftkit.Recipe = graftkit.parse_recipe(
        {
            "version": 1,
            "base_model": base,
            "operations": [{"op": "extend_vocab", "tokens": tokens, "init": "mean"}],
            "output": output,
        }
    )
    plan: graftkit.Plan = graftkit.plan(recipe)
    new: Mapping[str, int] = plan.new_tokens
    written: int = plan.bytes_written + sum(change.produced for change in plan.tensors)
    try:
        report: graftkit.Report = graftkit.apply(recipe, overwrite=True)
    except graftkit.GraftkitError as error:
        return int(error.exit_code)
    found: graftkit.Verification = graftkit.verify(str(base), str(output), outputs=False)
    sentences: list[str] = [*found.failures, report.verdict, *plan.notes]
    digests: dict[str, str] = {entry.name: entry.sha256 for entry in report.ledger}
    return len(new) + written + len(sentences) + len(digests)


print(grow(Path("base"), Path("out"), ["word"]))
"""

#: Mistakes that a type checker has to see.
WRONG = ["graftkit.plann({})", "graftkit.apply(1)", "graftkit.plan({}).new_tokens[0]", "len(graftkit.verify('a', 'b'))"]

#: The libraries below graftkit are none of this test's business, and torch alone takes mypy a minute.
CONFIG = """
[mypy]
strict = true
follow_imports = silent
[mypy-torch.*,transformers.*,safetensors.*,tokenizers.*,peft.*,pyarrow.*,numpy.*,rich.*,huggingface_hub.*,jinja2.*]
follow_imports = skip
ignore_missing_imports = true
"""


def check_types(program, folder):
    (folder / "mypy.ini").write_text(CONFIG)
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "program.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_caller_has_every_type_and_mistakes_are_seen(tmp_path):
    done = check_types(PROGRAM, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = check_types("\n".join(["import graftkit", *WRONG]) + "\n", tmp_path)
    seen = {int(line.split(":")[1]) - 2 for line in done.stdout.splitlines() if ": error:" in line}
    assert seen == set(range(len(WRONG))), done.stdout


def test_the_types_come_with_the_package():
    assert (Path(graftkit.__file__).parent / "py.typed").is_file()
    assert 'graftkit = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()


def test_the_public_names_are_shown_and_there():
    assert sorted(dir(graftkit)) == sorted(graftkit.__all__)
    for name in graftkit.__all__:
        assert getattr(graftkit, name) is not None
    assert not hasattr(graftkit, "surgeon")


@pytest.fixture(scope="module")
def given(sources, tmp_path_factory):
    """A recipe, and its file."""
    folder = tmp_path_factory.mktemp("library")
    operation = {"op": "extend_vocab", "tokens": ["coroutine", "[b]"], "special_tokens": ["<|tool|>"], "init": "mean"}
    data = recipe(sources("llama"), folder / "out", operation)
    (folder / "recipe.yaml").write_text(str(data).replace("'", '"'))
    return data, folder / "recipe.yaml"


@pytest.fixture(scope="module")
def applied(given):
    return graftkit.apply(given[0])


def framed(value):
    """The document in the frame that a notebook gets of a value."""
    frame = value._repr_html_()
    assert frame.startswith("<iframe ")
    assert "<" not in frame.partition('srcdoc="')[2].partition('"')[0]
    return html.unescape(frame.partition('srcdoc="')[2].partition('"')[0])


def test_a_plan_shows_what_the_command_prints(given, applied):
    planned = graftkit.plan(given[0])
    assert f"{planned!r}\n" == here("plan", given[1], "--overwrite").stdout
    page = framed(planned)
    assert "Planned" in page
    assert "Verified" not in page
    assert planned.promise.observable in page
    assert "coroutine" in page


def test_a_report_shows_what_the_command_prints(given, applied):
    printed = here("apply", given[1], "--overwrite").stdout
    assert printed == f"{applied.plan!r}\n{applied!r}\n"
    assert head(applied.to_json()) in framed(applied)


def test_a_verification_shows_what_the_command_prints(given, applied):
    both = given[0]["base_model"], given[0]["output"]
    found = graftkit.verify(*both, outputs=False)
    assert f"{found!r}\n" == here("verify", *both, "--no-outputs").stdout
    from graftkit.report.comparison import comparison_json

    assert comparison_head(comparison_json(*both, found)) in framed(found)


def test_paths_may_be_paths_as_well_as_texts(demo):
    assert graftkit.inspect(demo) == graftkit.inspect(str(demo))
    assert not graftkit.diff(demo, demo).tensors
    assert not graftkit.verify(demo, demo, outputs=False).failures
