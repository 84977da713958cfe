"""docs/pipelines.md: the examples run as they stand there, a second time without doing anything; without their tool they are skipped."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.recipes import recipe

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")

#: Heading -> the program, the file that it reads, and its arguments.
TOOLS = {
    "Make": ("make", "Makefile", ["train"]),
    "DVC": ("dvc", "dvc.yaml", ["repro", "--force"]),
    "Snakemake": ("snakemake", "Snakefile", ["--cores", "1", "--force", "graft"]),
}


def example(heading):
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.search(r"```\w+\n(.*?)```", section, re.DOTALL)[1]


@pytest.mark.parametrize("heading", TOOLS)
def test_the_second_run_has_nothing_to_do(heading, demo, tmp_path):
    program, file, arguments = TOOLS[heading]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    grows = {"op": "extend_vocab", "tokens": ["coroutine"]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(demo, "out/tools", grows, verify={"outputs": False})))
    (tmp_path / file).write_text(example(heading), encoding="utf-8")
    path = tmp_path / "bin"
    path.mkdir()
    (path / "graftkit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m graftkit "$@"\n')
    (path / "graftkit").chmod(0o755)
    environment = os.environ | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    if program == "dvc":
        subprocess.run(["dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, env=environment, check=True)

    def run():
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "up to date: " not in run()
    assert (tmp_path / "out/tools/graft_report.json").is_file()
    assert "up to date: out/tools" in run()


def test_the_exit_codes_are_those_of_the_errors():
    from graftkit import errors

    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GraftkitError)
    ]
    codes = {str(kind.exit_code) for kind in kinds if kind is not errors.GraftkitError}
    assert set(re.findall(r"^\| (\d) \|", PAGE, re.MULTILINE)) == {"0", *codes}
