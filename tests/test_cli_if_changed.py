"""apply --if-changed: nothing is done where recipe, inputs, versions and output are those of the output's own report."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from support.command import ROOT, assert_one_line, here
from support.families import build
from support.recipes import recipe

import graftkit
from graftkit.recipe.load import validated
from graftkit.recipe_file.reading import read_document
from graftkit.recipe_file.request import request_of
from graftkit.report.manifest import write_manifest
from graftkit.report.up_to_date import unchanged_output, why_stale


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A recipe whose output stands, with its base and the template that it reads."""
    tmp_path = tmp_path_factory.mktemp("changed")
    build("llama", tmp_path / "base")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    operation = {
        "op": "extend_vocab",
        "tokens": ["coroutine", "//"],  # which is the path of a folder, too
        "chat_template": {"file": str(tmp_path / "chat.jinja")},
        "init": "mean",
    }
    data = recipe(tmp_path / "base", tmp_path / "out", operation, verify={"outputs": False})
    (tmp_path / "recipe.yaml").write_text(json.dumps(data))
    done = here("apply", "--if-changed", tmp_path / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith("not up to date")  # nothing stood there
    return tmp_path


@pytest.fixture
def applied(everything):
    """The same, put in order again behind the test; files are written in place, so that they stay the same to the file system."""
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in everything.rglob("*") if path.is_file()}
    yield everything
    for path in [path for path in everything.rglob("*") if path.is_file() and path not in before]:
        path.unlink()
    for path, (raw, changed) in before.items():
        if not path.exists() or path.read_bytes() != raw:
            path.write_bytes(raw)
        os.utime(path, ns=(changed, changed))


def stale(folder, **changes):
    """Why the output is stale, for the recipe with ``changes``."""
    data = json.loads((folder / "recipe.yaml").read_text()) | changes
    return why_stale(graftkit.parse_recipe(data))


def touch(path):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def edit_report(output, edit):
    """The report as a run would have written it that found something else."""
    report = json.loads((output / "graft_report.json").read_text())
    edit(report)
    for key in ("files", "sha256_of_this_report"):
        del report[key]
    write_manifest(report, output)


def test_a_second_run_does_nothing_and_loads_neither_torch_nor_pydantic(applied):
    before = {path: path.stat().st_mtime_ns for path in (applied / "out").rglob("*")}
    heavy = ("torch", "transformers", "numpy", "rich", "huggingface_hub", "pydantic", "graftkit.recipe")
    program = (
        "import sys; from graftkit.cli import run\n"
        f"code = run(['apply', '--if-changed', {str(applied / 'recipe.yaml')!r}])\n"
        f"sys.exit([m for m in {heavy!r} if m in sys.modules] or code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"up to date: {applied / 'out'}\n"), done.stderr
    assert {path: path.stat().st_mtime_ns for path in (applied / "out").rglob("*")} == before
    told = here("apply", "--if-changed", "--json", applied / "recipe.yaml").stdout
    assert json.loads(told) == {"up_to_date": True, "output": str(applied / "out")}
    assert here("apply", "--if-changed", "-q", applied / "recipe.yaml").stdout == ""


def test_what_changed_is_said_and_an_output_is_replaced_only_where_that_is_asked_for(applied):
    changed = (applied / "chat.jinja").stat().st_mtime_ns
    touch(applied / "chat.jinja")
    done = here("apply", "--if-changed", applied / "recipe.yaml")
    assert done.stdout == "not up to date: operations.0.chat_template.file: . is not what it was\n"
    assert done.returncode == 2
    assert "exists" in done.stderr
    done = here("apply", "--if-changed", "--overwrite", applied / "recipe.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert not stale(applied)
    os.utime(applied / "chat.jinja", ns=(changed, changed))
    assert here("apply", "--overwrite", "-q", applied / "recipe.yaml").returncode == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda at: touch(at / "base" / "model.safetensors"), "base_model: model.safetensors is not what it was"),
        (lambda at: (at / "base" / "new.json").write_text("{}"), "base_model: new.json is not what it was"),
        (lambda at: touch(at / "chat.jinja"), "operations.0.chat_template.file: . is not what it was"),
        (lambda at: touch(at / "out" / "model.safetensors"), "model.safetensors is not the file that was written"),
        (lambda at: (at / "out" / "README.md").write_text("mine"), "README.md is not the file that was written"),
        (lambda at: (at / "out" / "tokenizer.json").unlink(), "tokenizer.json is not there"),
        (lambda at: (at / "out" / "other.safetensors").touch(), "other.safetensors was not written by that run"),
        (lambda at: (at / "out" / "graft_report.json").write_text("{}"), "graft_report.json is not the one"),
        (lambda at: (at / "out" / "graft_report.json").unlink(), "graft_report.json is not there"),
        (lambda at: edit_report(at / "out", lambda r: r["versions"].update(torch="1.0")), "torch was 1.0, now it is"),
        (lambda at: edit_report(at / "out", lambda r: r.pop("inputs")), "cannot be read as a report"),
    ],
    ids=["weight", "added", "template", "written", "edited", "gone", "stranger", "report", "none", "version", "older"],
)
def test_each_thing_that_changes_is_named(change, words, applied):
    assert stale(applied) == ""
    change(applied)
    assert words in stale(applied)


def test_another_recipe_and_a_base_that_is_gone_are_seen(applied):
    assert stale(applied, seed=1) == "the recipe is another one"
    (applied / "base").rename(applied / "moved")
    assert stale(applied) == "base_model is not on this machine"
    (applied / "moved").rename(applied / "base")
    assert stale(applied) == ""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A recipe whose paths are a variable and a file beside it, its output, and a working folder elsewhere; returns what a request says."""
    build("llama", tmp_path / "models" / "base")
    words = tmp_path / "recipes" / "words.txt"
    words.parent.mkdir()
    words.write_text("coroutine\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("MODELS", str(tmp_path / "models"))
    operation = {"op": "extend_vocab", "tokens": {"file": "words.txt"}}
    data = recipe("${MODELS}/base", tmp_path / "out", operation, verify={"outputs": False})
    file = words.with_name("recipe.yaml")
    file.write_text(json.dumps(data))
    document = read_document(file)
    graftkit.engine.execute(replace(graftkit.plan(validated(document)), request=request_of(document)))

    def told(*overrides):
        return unchanged_output(read_document(file, overrides)), why_stale(graftkit.load_recipe(file, overrides))

    assert told() == (str(tmp_path / "out"), "")
    return tmp_path, file, told


def test_a_recipe_is_known_by_what_it_says_whatever_else_stands_in_its_file(written):
    folder, file, told = written
    file.write_text(f"# for the second run\n{file.read_text()}")
    assert told() == (str(folder / "out"), "")
    assert told("seed=0") == (None, "")  # written in another way: what it means has to be looked at
    assert told("seed=1") == (None, "the recipe is another one")


def test_a_path_that_leads_elsewhere_today_is_seen_before_anything_is_called_unchanged(written, monkeypatch):
    folder, _, told = written
    (folder / "work" / "words.txt").write_text("other\n")  # hides the one beside the recipe
    assert told() == (None, "the recipe is another one")
    (folder / "work" / "words.txt").unlink()
    assert told() == (str(folder / "out"), "")
    build("llama", folder / "others" / "base")
    monkeypatch.setenv("MODELS", str(folder / "others"))
    assert told() == (None, "the recipe is another one")
    monkeypatch.delenv("MODELS")
    assert unchanged_output(read_document(folder / "recipes" / "recipe.yaml")) is None


def test_a_report_without_a_request_is_judged_by_what_the_recipe_means(written):
    folder, _, told = written
    edit_report(folder / "out", lambda report: report.update(request=None))
    assert told() == (None, "")
    edit_report(folder / "out", lambda report: report.pop("request"))
    assert told() == (None, "")


def test_a_hub_id_is_found_in_the_cache(tmp_path, monkeypatch):
    from graftkit.checkpoint.inputs import local_folder

    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert local_folder("org/name", None) == local_folder("org/name", "abc") == snapshot
    assert local_folder("org/name", "other") is None
    assert local_folder("org/other", None) is None
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert local_folder("org/name", None) is None


def test_another_snapshot_of_a_donor_is_seen_and_what_lies_in_hidden_folders_is_not(tmp_path, monkeypatch):
    build("llama", tmp_path / "base")
    cache = tmp_path / "hub" / "models--org--donor"
    for commit in ("abc", "def"):
        build("llama", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    take = {"op": "take_tensors", "donor": "org/donor", "tensors": ["model.norm.weight"]}
    data = recipe(tmp_path / "base", tmp_path / "out", take)
    graftkit.apply(data)
    (tmp_path / "out" / ".git").mkdir()
    (tmp_path / "out" / ".git" / "HEAD").touch()
    assert why_stale(graftkit.parse_recipe(data)) == ""
    (cache / "refs" / "main").write_text("def")
    assert why_stale(graftkit.parse_recipe(data)) == "operations.0.donor: config.json is not what it was"


def test_a_first_run_has_nothing_to_say_of_an_output_that_is_not_there(tmp_path):
    build("llama", tmp_path / "base")
    data = recipe(tmp_path / "base", tmp_path / "out", {"op": "extend_vocab", "tokens": ["a b"]})
    assert "is not there" in why_stale(graftkit.parse_recipe(data))
    (tmp_path / "r.yaml").write_text(json.dumps({**data, "base_model": str(tmp_path / "none")}))
    assert_one_line(here("apply", "--if-changed", "-q", tmp_path / "r.yaml"), 3, "none")
