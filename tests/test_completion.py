"""Shells complete commands, options, choices and paths: asked of a real bash."""

import json
import shutil
import subprocess

import pytest
from support.command import here

from graftkit.completion import SHELLS

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_graftkit
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "graftkit"
    path.write_text(here("completion", "bash").stdout)
    return path


def offered(script, folder, *words):
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", script, "graftkit", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_offers_commands_options_choices_and_paths(script, tmp_path):
    (tmp_path / "recipe.yaml").touch()
    assert offered(script, tmp_path, "val") == {"validate"}
    assert offered(script, tmp_path, "apply", "--if") == {"--if-changed"}
    assert offered(script, tmp_path, "init", "model", "--for", "rew") == {"reward"}
    assert "recipe.yaml" in offered(script, tmp_path, "plan", "rec")
    assert offered(script, tmp_path, "nonsense", "--if") == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script_that_knows_every_command(shell):
    found = json.loads(here("completion", shell, "--json").stdout)
    assert found["shell"] == shell
    assert all(command in found["script"] for command in ("init", "validate", "plan", "apply", "if-changed"))
