"""The scripts and recipes that people run first: well-formed, executable, and safe to run twice."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMMANDS = ["scripts/demo", "scripts/test", "scripts/fuzz", ".ci/run"]
RECIPES = sorted(path.relative_to(ROOT) for path in (ROOT / "recipes").glob("*.yaml"))

FAKE_PYTHON = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
    *ensurepip*) exit {ensurepip} ;;
    *'"%d.%d"'*) echo 3.13 ;;
    *floors.py*) echo torch==2.13.0; echo rich==13.7 ;;
    "-m venv"*) for last in "$@"; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
esac
"""


@pytest.mark.parametrize("script", [*COMMANDS, "scripts/environment.sh"])
def test_bash_reads_the_script(script):
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", COMMANDS)
def test_a_clone_gets_the_executable_bit(script):
    assert os.access(ROOT / script, os.X_OK)
    listed = subprocess.run(["git", "ls-files", "-s", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0 or not listed.stdout:
        pytest.skip("not a git checkout")
    assert listed.stdout.startswith("100755 ")


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_recipe_is_yaml_and_names_a_schema_that_lies_beside_it(recipe):
    text = (ROOT / recipe).read_text(encoding="utf-8")
    schema = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text.splitlines()[0])
    assert schema
    assert (ROOT / recipe).parent.joinpath(schema[1]).is_file()
    assert {"version", "base_model", "operations", "output"} <= yaml.safe_load(text).keys()


@pytest.fixture
def clone(tmp_path):
    """Only what scripts/environment.sh reads, and a directory of stand-in interpreters to put on the PATH."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "path").mkdir()
    for name in ("pyproject.toml", "scripts/environment.sh", "scripts/constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    for tool in ("bash", "cat", "cp", "cut", "date", "dirname", "grep", "mkdir", "sh", "sha256sum"):
        (tmp_path / "path" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def set_up(clone, extras="", *, ensurepip=0, before=""):
    fake = clone / "path" / "python3"
    fake.write_text(FAKE_PYTHON.format(log=clone / "log", ensurepip=ensurepip))
    fake.chmod(0o755)
    (clone / "log").write_text("")
    done = subprocess.run(
        ["bash", "-c", f'source "{clone}/scripts/environment.sh"; {before or ":"}; environment "{extras}"'],
        env={"PATH": str(clone / "path")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, (clone / "log").read_text().splitlines()


def installs(log):
    return [line for line in log if "pip install" in line]


def test_the_first_run_installs_the_pinned_torch_first_and_the_second_run_nothing(clone):
    done, log = set_up(clone)
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in installs(log)] == ["torch==2.13.0", str(clone)]
    assert set_up(clone)[1] == []


def test_what_the_tests_installed_serves_the_demo_but_not_the_reverse(clone):
    set_up(clone)
    assert installs(set_up(clone, "[test]")[1])
    assert set_up(clone, "")[1] == []


def test_changed_requirements_are_installed_into_the_same_environment(clone):
    set_up(clone)
    with (clone / "scripts" / "constraints.txt").open("a") as file:
        file.write("six==1.17.0\n")
    log = set_up(clone)[1]
    assert installs(log)
    assert not any("-m venv" in line for line in log)


def test_an_environment_whose_interpreter_is_gone_is_made_anew(clone):
    set_up(clone)
    (clone / ".venv" / "bin" / "python").unlink()
    assert any("-m venv" in line for line in set_up(clone)[1])


def test_a_python_without_ensurepip_is_named_with_the_remedy(clone):
    done, log = set_up(clone, ensurepip=1)
    assert done.returncode == 2
    assert "python3-venv" in done.stderr
    assert not installs(log)


def test_no_python_at_all_is_said_in_one_line(clone):
    command = ["bash", "-c", f'source "{clone}/scripts/environment.sh"; environment ""']
    done = subprocess.run(command, env={"PATH": str(clone / "path")}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["graftkit needs Python 3.11 or newer, as python3 on the PATH"]


@pytest.mark.parametrize("kind", ["newest", "lowest"])
def test_other_versions_get_an_environment_of_their_own(kind, clone):
    set_up(clone)
    before = sorted((clone / ".venv").rglob("*"))
    done, log = set_up(clone, before=f"other_environment {kind} python3")
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in installs(log)] == ["torch==2.13.0", str(clone)]
    assert ("--upgrade-strategy eager" in installs(log)[1]) == (kind == "newest")
    constraints = (clone / f".venv-{kind}-3.13" / "constraints.txt").read_text().split()
    assert constraints == (["torch==2.13.0"] if kind == "newest" else ["torch==2.13.0", "rich==13.7"])
    assert sorted((clone / ".venv").rglob("*")) == before
    assert not installs(set_up(clone, before=f"other_environment {kind} python3")[1])


def test_another_torch_can_be_asked_for(clone):
    log = set_up(clone, before="other_environment newest python3 2.6.0")[1]
    assert installs(log)[0].split()[-1] == "torch==2.6.0"


@pytest.mark.parametrize("kind", ["--newest", "--lowest"])
def test_an_interpreter_that_is_not_there_is_said_in_one_line(kind):
    command = [ROOT / "scripts/test", kind, "--python", sys.executable, "--python", "9.99"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "python9.99 does not run, or is older than Python 3.11: put it on the PATH, or name one with --python PATH"
    ]
    assert done.stdout == ""
