"""Where a recipe comes from, and what its paths may hold: standard input, ``~`` and ``${NAME}``."""

import os
import shutil
import subprocess
import sys

import pytest
from support.command import here

from graftkit.cli import run
from graftkit.errors import RecipeError
from graftkit.recipe import load_recipe, parse_recipe

TEXT = "version: 1\nbase_model: ${MODELS}/a\noutput: out\noperations:\n  - {op: extend_vocab, tokens: [zz]}\n"


def asked(text, *arguments, **variables):
    command = [sys.executable, "-m", "graftkit", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)


def test_a_recipe_from_standard_input():
    done = asked(TEXT, "validate", "-", "operations.0.init=zeros", MODELS="/somewhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "-: valid: extend_vocab\n", "")


def test_its_problems_name_standard_input():
    done = asked(TEXT.replace("tokens", "tokns"), "validate", "-", MODELS="/somewhere")
    assert done.returncode == 2
    assert done.stderr.startswith("graftkit: standard input:5: operations.0.tokns: unknown field")
    done = asked("", "validate", "-")
    assert done.stderr == "graftkit: standard input: is empty; a recipe begins with version: 1\n"


def recipe(base):
    return parse_recipe(
        {"version": 1, "base_model": base, "output": "o", "operations": [{"op": "extend_vocab", "tokens": ["a"]}]}
    )


def test_variables_in_paths(monkeypatch):
    monkeypatch.setenv("MODELS", "~/models")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert recipe("${MODELS}/a-${MODELS}").base_model == "/home/somebody/models/a-~/models"
    assert recipe("$MODELS/${}/a").base_model == "$MODELS/${}/a"


def test_a_variable_that_is_not_set_is_an_error(monkeypatch):
    monkeypatch.delenv("MODELS", raising=False)
    with pytest.raises(RecipeError, match="base_model: the environment has no variable MODELS"):
        recipe("${MODELS}/a")


def test_what_only_the_checkpoint_shows_has_its_line_too(tmp_path):
    text = (
        "version: 1\nbase_model: recipes/models/demo-lm\noutput: ${OUT}/x\noperations:\n"
        "  - op: add_lora\n    r: 4\n    target_modules:\n      - q_prj\n"
    )
    done = asked(text, "plan", "-", OUT=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("graftkit: standard input:7: operations.0.target_modules: 'q_prj' matches no module")
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("${OUT}", str(tmp_path)))
    done = here("plan", path, "operations.0.target_modules=[v_prj]")
    assert done.stderr.startswith(
        "graftkit: override 'operations.0.target_modules=[v_prj]': operations.0.target_modules: 'v_prj'"
    )


def test_labels_of_another_type_are_one_problem_each():
    head = {"op": "replace_head", "task": "sequence_classification", "labels": [True, False]}
    with pytest.raises(RecipeError) as raised:
        parse_recipe({"version": 1, "base_model": "a", "output": "o", "operations": [head]})
    assert [problem.partition(": ")[0] for problem in raised.value.problems] == [
        "operations.0.labels.0",
        "operations.0.labels.1",
    ]


def test_a_standard_input_that_is_closed():
    command = f"exec {sys.executable} -m graftkit validate - <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "graftkit: standard input: is closed\n")


def test_a_relative_path_is_tried_beside_the_recipe_too(demo, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model").symlink_to(demo)
    (folder / "words.txt").write_text("quokka\n")
    (folder / "recipe.yaml").write_text(
        "version: 1\nbase_model: model\noperations:\n  - {op: extend_vocab, tokens: {file: words.txt}}\noutput: model/x\n"
    )
    monkeypatch.chdir(tmp_path)
    found = load_recipe("project/recipe.yaml")
    assert (found.base_model, found.output) == ("./project/model", "model/x")
    assert found.operations[0].tokens.file == "./project/words.txt"
    (tmp_path / "words.txt").write_text("wombat\n")
    assert load_recipe(folder / "recipe.yaml").operations[0].tokens.file == "words.txt"
    assert load_recipe("project/recipe.yaml", ["base_model=org/model"]).base_model == "org/model"


@pytest.mark.parametrize("folder", ["", "project/"])
def test_a_path_that_leads_nowhere_says_where_it_was_looked_for(folder, demo, tmp_path, monkeypatch, capsys):
    (tmp_path / "project").mkdir()
    text = "version: 1\nbase_model: {}\noperations:\n  - {{op: {}}}\noutput: out\n"
    monkeypatch.chdir(tmp_path)
    said = "; looked in the working folder" + (" and in project" if folder else "")
    for base, operation, begins in (
        ("none/model", "cast, dtype: float32", "none/model: is not a local folder"),
        (demo, "extend_vocab, tokens: {file: none.txt}", f"{folder}recipe.yaml:4: operations.0.tokens: none.txt: No such file"),
        (demo, "merge_adapter, adapter: none", "none: is not the folder of an adapter"),
    ):  # fmt: skip
        (tmp_path / folder / "recipe.yaml").write_text(text.format(base, operation))
        assert run(["plan", f"{folder}recipe.yaml"]) in (2, 3)
        words = capsys.readouterr().err
        assert words.startswith(f"graftkit: {begins}")
        assert words.endswith(f"{said}\n")


def test_a_hub_id_that_is_there_is_looked_for_nowhere_else(demo, tmp_path, monkeypatch, capsys):
    commit = "0" * 40
    repository = tmp_path / "hub/models--org--broken"
    shutil.copytree(demo, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nbase_model: org/broken\noperations: [{op: cast, dtype: float32}]\noutput: out\n"
    )
    assert run(["plan", str(tmp_path / "recipe.yaml")]) == 3
    said = capsys.readouterr().err
    assert said.startswith("graftkit: org/broken: config.json: ")
    assert "looked in" not in said
