"""What the command says is true, whatever hits its process: signals, standard output, encodings, the working directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.command import real
from support.recipes import recipe
from support.strace import inject, mind_interrupts, needs_strace


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


TOKENS = {"op": "extend_vocab", "special_tokens": ["<|é→|>"]}


@pytest.fixture
def written(demo, tmp_path):
    """A recipe that is applied in a few seconds, and its output."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe(demo, tmp_path / "out", TOKENS), "verify": {"outputs": False}}))
    return path, tmp_path / "out"


def apply(path, *flags):
    return [sys.executable, "-m", "graftkit", "apply", str(path), *flags]


def started(*command):
    pipe = subprocess.PIPE
    return subprocess.Popen(list(command), stdout=pipe, stderr=pipe, text=True, preexec_fn=mind_interrupts)  # noqa: PLW1509 - no threads here


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@needs_strace
@pytest.mark.parametrize("name", ["INT", slow("TERM"), slow("HUP")])
def test_a_signal_at_the_rename_is_told_as_what_it_is_after_the_commit(written, tmp_path, name):
    path, out = written
    out.mkdir()
    (out / "graft_report.json").write_text("{}")
    done = inject(apply(path, "-q", "--overwrite"), "renameat2", 2, f"signal={name}")
    assert done.returncode == 7, done.stderr
    assert done.stderr == f"graftkit: {out}: in place and whole; interrupted behind it\n"
    assert "<|é→|>" in (out / "tokenizer.json").read_text()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "recipe.yaml"]


@pytest.mark.parametrize("number", [slow(signal.SIGINT), signal.SIGTERM, slow(signal.SIGHUP)])
def test_a_signal_while_writing_leaves_nothing(written, tmp_path, number):
    path, _ = written
    process = started(*apply(path, "-q"))
    wait_for(tmp_path / ".out.graftkit-staging" / "checkpoint", process)
    process.send_signal(number)
    process.send_signal(number)  # a second one must not disturb the clean-up
    assert process.communicate()[1] == "graftkit: interrupted; nothing was written\n"
    assert process.returncode == 128 + number
    assert [item.name for item in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.slow
def test_the_self_test_leaves_no_copies_behind(demo, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "graftkit", "selftest", str(demo), "--no-outputs"], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(tmp_path.glob("graftkit-selftest-*/copy/config.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1] == "graftkit: interrupted; nothing was written\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("graftkit*"))


@pytest.mark.slow
def test_a_signal_that_the_caller_ignores_stays_ignored(written):
    path, out = written
    line = f"trap '' HUP; kill -HUP $$; exec {' '.join(apply(path, '-q'))}"
    assert subprocess.run(["bash", "-c", line], check=False).returncode == 0
    assert out.is_dir()


@pytest.mark.parametrize(
    "redirection", ["| true", slow(">&-"), slow(">&- 2>&- <&-")], ids=["reader gone", "closed", "all closed"]
)
def test_printing_to_nobody_changes_nothing(written, redirection):
    path, out = written
    line = f"{{ {' '.join(apply(path))}; echo $? >&3; }} {redirection}"
    done = subprocess.run(["bash", "-c", f"exec 3>&1; {line}"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert (out / "graft_report.json").is_file()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ((), 7, "{out}: in place and whole; standard output: No space left on device"),
        slow(("--overwrite", "--dry-run"), 5, "standard output: No space left on device; nothing was written"),
    ],
    ids=["after the commit", "before"],
)
def test_a_full_disk_behind_standard_output_is_told_with_what_stands(written, flags, code, words):
    path, out = written
    with open("/dev/full", "w") as full:
        done = subprocess.run(apply(path, *flags), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, f"graftkit: {words.format(out=out)}\n")
    assert out.is_dir() == (code == 7)


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, slow({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})],
    ids=["ascii", "C"],
)
def test_what_an_encoding_lacks_is_escaped(written, environment):
    path, out = written
    plan = real("plan", path, "--json", env={**os.environ, **environment})
    assert plan.returncode == 0, plan.stderr
    assert list(json.loads(plan.stdout)["new_tokens"]) == ["<|é→|>"]
    done = real("apply", path, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"<|\xe9\u2192|>" in done.stdout
    assert out.is_dir()


def test_nothing_is_imported_from_the_working_directory(demo, tmp_path):
    model = shutil.copytree(demo, tmp_path / "model")
    for name in ("numpy", "torch", "yaml", "signal", "argparse"):
        (model / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert real("inspect", ".", cwd=model).returncode == 0
    assert not (tmp_path / "ran").exists()


def test_every_path_of_a_recipe_knows_the_home_folder(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "model")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**recipe("~/model", "~/out", TOKENS), "verify": {"outputs": False}}))
    home = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = real("apply", path, "-q", cwd=tmp_path, env=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model", "out", "recipe.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [["plan", "recipes/quickstart.yaml", "output=~nosuchuser/x"], ["verify", "--adapter", "~nosuchuser/x"], ["report", "~nosuchuser"]],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_the_home_of_nobody_is_an_error(arguments):
    done = real(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "~nosuchuser is no user's home folder; write ./~nosuchuser for a folder of that name" in done.stderr
