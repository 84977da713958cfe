"""The real command line on the model that ships with the project."""

import argparse
import json
import re
from pathlib import Path

import pytest
from support.command import here, real

from graftkit.cli import _parser

pytestmark = pytest.mark.numerical

ROOT = Path(__file__).parent.parent


def tree(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    output = tmp_path_factory.mktemp("applied") / "out"
    done = real("apply", "recipes/quickstart.yaml", "--output", output)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_apply_shows_plan_verification_and_what_to_paste(applied):
    _, text = applied
    for words in (
        "model.embed_tokens.weight",
        "<|tool_call|>",
        "promise",
        "bitwise",
        "KL(old, new)",
        "verified",
        "not checked: ",
        "axolotl",
    ):
        assert words in text


def test_the_report_holds_a_digest_of_every_tensor(applied):
    import hashlib

    from safetensors import safe_open

    output, _ = applied
    report = json.loads((output / "graft_report.json").read_text())
    with safe_open(output / "model.safetensors", "pt") as file:
        names = set(file.keys())
        for entry in report["ledger"]:
            import torch

            raw = file.get_tensor(entry["name"]).contiguous().view(torch.uint8).numpy().tobytes()
            assert hashlib.sha256(raw).hexdigest() == entry["sha256"]
    assert names == {entry["name"] for entry in report["ledger"]}
    assert report["outputs"]["failures"] == []
    assert report["new_tokens"]["<|pad|>"] == 2044


def test_the_output_is_all_that_is_left(applied):
    output, _ = applied
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert not [name for name in tree(output) if name.startswith(".")]


def test_the_resolved_recipe_makes_the_same_checkpoint_again(applied, tmp_path):
    output, _ = applied
    again = tmp_path / "again"
    done = here("apply", output / "graft_recipe.yaml", "--output", again, "-q")
    assert (done.returncode, done.stdout) == (0, "")
    assert (again / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()
    assert (again / "tokenizer.json").read_bytes() == (output / "tokenizer.json").read_bytes()


def test_an_output_that_exists_is_refused_and_left_alone(applied):
    output, _ = applied
    before = tree(output)
    done = real("apply", "recipes/quickstart.yaml", "--output", output)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert tree(output) == before


def test_overwrite_replaces_it_whole(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "old.txt").write_text("old")
    (output / "config.json").write_text("{}")
    assert here("apply", "recipes/quickstart.yaml", "--output", output, "--overwrite", "-q").returncode == 0
    assert "old.txt" not in tree(output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_refuses_a_directory_that_is_no_checkpoint(tmp_path):
    thesis = tmp_path / "documents" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("ten years")
    done = real("apply", "recipes/quickstart.yaml", "--output", thesis.parent, "--overwrite", "-q")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert thesis.read_text() == "ten years"
    assert [path.name for path in tmp_path.iterdir()] == ["documents"]


def test_dry_run_and_plan_write_nothing(tmp_path):
    for run, *arguments in ((here, "apply", "--dry-run"), (real, "plan")):
        done = run(*arguments, "recipes/quickstart.yaml", "--output", tmp_path / "out", "--json")
        assert done.returncode == 0, done.stderr
        planned = json.loads(done.stdout)
        assert planned["new_tokens"]["coroutine"] == 2040
    assert not list(tmp_path.iterdir())


def test_plan_refuses_the_output_that_apply_would(demo, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for output, words in (
        (tmp_path, "exists; name another output, or replace it with --overwrite"),
        (demo / "out", "lies in the source"),
    ):
        for command in (["plan"], ["apply", "--dry-run"]):
            done = here(*command, "recipes/quickstart.yaml", "--output", output)
            assert (done.returncode, done.stdout) == (2, "")
            assert words in done.stderr
    assert here("plan", "recipes/quickstart.yaml", "--output", tmp_path, "--overwrite", "-q").returncode == 0


def test_overrides_may_stand_before_and_behind_options(tmp_path):
    done = here(
        "plan", "recipes/quickstart.yaml", "seed=3", "--output", tmp_path / "out", "--json", "operations.0.init=zeros"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(tmp_path / "out")
    refused = here("plan", "recipes/quickstart.yaml", "--output", tmp_path / "out", "operations.0.init=zero")
    assert refused.returncode == 2
    assert "operations.0.init" in refused.stderr
    for stranger in (["diff", "a", "b", "c=1"], ["plan", "recipes/quickstart.yaml", "--no-such"]):
        done = here(*stranger)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "unrecognized arguments" in done.stderr


def test_diff_names_only_what_was_changed(applied):
    output, _ = applied
    found = json.loads(real("diff", "recipes/models/demo-lm", output, "--json").stdout)
    assert {(item["name"], item["rows"]) for item in found["tensors"]} == {
        ("lm_head.weight", 5),
        ("model.embed_tokens.weight", 5),
    }
    assert found["equal"] == 28


def test_inspect_finds_the_missing_pad_token():
    found = json.loads(real("inspect", "recipes/models/demo-lm", "--json", "--nonfinite").stdout)
    assert (found["rows"], found["tokens"], found["padding_rows"], found["tied"]) == (2048, 2040, 8, False)
    assert any("no pad token" in finding for finding in found["findings"])
    assert found["nonfinite"] == []


def test_verify_passes_the_output_and_catches_a_flipped_byte(applied, tmp_path):
    import shutil

    output, _ = applied
    done = real("verify", "recipes/models/demo-lm", output)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken"
    shutil.copytree(output, broken)
    raw = bytearray((broken / "model.safetensors").read_bytes())
    raw[len(raw) // 2] ^= 1
    (broken / "model.safetensors").write_bytes(raw)
    done = here("verify", "recipes/models/demo-lm", broken)
    assert done.returncode == 4
    assert "changed, max" in done.stdout or "of old ids changed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["apply", "absent.yaml"], 2, "absent.yaml"),
        (["apply"], 2, "RECIPE"),
        (["paint"], 2, "paint"),
        (["inspect", "recipes"], 3, "recipes"),
        (["inspect", "no/such-model"], 3, "no/such-model"),
        (["apply", "recipes/quickstart.yaml", "operations.0.init=median"], 2, "median"),
    ],
)
def test_bad_input_is_one_line_and_the_right_code(arguments, code, words):
    done = real(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_each_change_names_its_operation(demo, tmp_path):
    """In the plan and in the report: what was made, what was dropped, and what two operations had a hand in."""
    recipe = tmp_path / "recipe.yaml"
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b"], "pad_token": "<|pad|>"}
    recipe.write_text(
        json.dumps(
            {
                "version": 1,
                "base_model": str(demo),
                "operations": [{"op": "extend_vocab", "roles": {"pad_token": "<|pad|>"}}, head],
                "verify": {"outputs": False},
                "output": str(tmp_path / "out"),
            }
        )
    )
    wanted = {
        "model.embed_tokens.weight": "extend_vocab",
        "score.weight": "replace_head",
        "lm_head.weight": "extend_vocab, replace_head",
    }
    plan = json.loads(here("plan", recipe, "--json").stdout)
    assert {change["name"]: change["operation"] for change in plan["tensors"]} == wanted
    shown = here("apply", recipe).stdout
    assert all(re.search(rf"{re.escape(name)} .* {op} *$", shown, re.MULTILINE) for name, op in wanted.items())
    assert "bitwise: hidden states of the backbone (the logits are those of a new head), for sequences of old" in shown
    report = json.loads((tmp_path / "out" / "graft_report.json").read_text())
    assert {change["name"]: change["operation"] for change in report["changes"]["tensors"]} == wanted
    assert (
        "Dropped: lm_head.weight (extend_vocab, replace_head)." in (tmp_path / "out" / "graft_report.html").read_text()
    )


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_command_with_its_options_and_no_other():
    commands = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    rows = re.findall(r"^\| `graftkit (\w+)([^|]*)\|([^|]*)\|$", README, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(commands)
    for name, usage, text in rows:
        spellings = [action.option_strings for action in commands[name]._actions if action.option_strings]
        options = {option for spelling in spellings for option in spelling}
        assert set(re.findall(r"`(--?[a-z-]+)", f"{usage} {text}")) <= options, name
        missing = {
            each[-1] for each in spellings if not any(f"`{option}`" in text or f"`{option} " in text for option in each)
        }
        assert "--adapter" in usage or missing <= {"--help", "--json", "--debug", "--adapter"}, name


def test_the_readme_shows_the_recipe_whose_output_it_shows():
    shown = next(block for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "version: 1" in block)
    text = (ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")
    assert shown == "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def test_every_link_of_the_pages_leads_to_a_file():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for link in (*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r'src="([^"]+)"', text)):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_shows_what_the_command_prints(applied):
    """But for the figures, which another processor may round otherwise."""

    def bare(line):
        return re.sub(r"\d[\d,.]*(e-\d+)?", "0", line.replace(str(output), "out/quickstart")).split()

    output, text = applied
    shown = re.findall(r"```\n((?:plan|verification)\n?.*?)```", README, re.DOTALL)
    printed = [bare(line) for line in text.splitlines()]
    lines = [line for block in shown for line in block.splitlines()]
    assert len(lines) > 40
    assert [line for line in lines if bare(line) not in printed] == []
