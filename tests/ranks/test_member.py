"""What each rank does and prints of commands that are not shared, and of a command line that is wrong."""

import ast
import subprocess
import sys

import pytest

from graftkit import cli
from graftkit.ranks.member import Member
from graftkit.ranks.place import RankPlace

VALID = ["validate", "recipes/quickstart.yaml"]


def run_in(rank, arguments):
    return cli.run(arguments, [], Member(RankPlace(rank, 2, "localhost", 1, hosts=False)))


@pytest.mark.parametrize(
    ("arguments", "code", "stream"),
    [
        (VALID, 0, "out"),
        (["--version"], 0, "out"),
        (["aply", "recipe.yaml"], 2, "err"),
        (["apply", "-"], 2, "err"),
        (["plan", "nowhere.yaml"], 2, "err"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_rank_0_does_what_is_not_shared_and_speaks(arguments, code, stream, capsys):
    assert run_in(0, arguments) == code
    said = capsys.readouterr()
    assert len(getattr(said, stream).splitlines()) == 1
    assert (stream == "err") == said.err.startswith("graftkit: rank 0: ")
    assert run_in(1, arguments) in (0, code)
    assert capsys.readouterr() == ("", "")


def test_a_process_alone_imports_nothing_of_several():
    program = (
        "import sys; import graftkit.engine, graftkit.verification.registry, graftkit.verification.outputs\n"
        "print([name for name in sys.modules if name.startswith(('graftkit.ranks', 'graftkit.running.split'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    light = ["graftkit.running.split", "graftkit.running.split.together", "graftkit.running.split.interrupts"]
    assert sorted(ast.literal_eval(done.stdout)) == sorted(light)


@pytest.mark.parametrize("changed", ["output_format=dcp", "output=memory://bucket/model"])
def test_another_output_than_a_folder_of_safetensors_is_one_process_s(changed, capsys):
    assert run_in(0, ["apply", "recipes/quickstart.yaml", changed]) == 2
    assert "for another output run one process" in capsys.readouterr().err
