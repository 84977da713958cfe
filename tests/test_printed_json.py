"""What commands print with --json is what their schemas say, key by key, errors included; and docs/json.md shows these."""

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
from support.adapters import make_adapter
from support.command import here
from support.families import build
from support.recipes import recipe

from graftkit.cli import _parser
from graftkit.commands import PRINT_JSON
from graftkit.printed_json import PRINTED, printed_schema
from graftkit.usage import commands_of

ROOT = Path(__file__).parent.parent
TOKENS, LORA = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}, {"op": "add_lora", "r": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, an adapter on it, and recipes."""
    place = tmp_path_factory.mktemp("json")
    base = build("llama", place / "base")
    _, adapter = make_adapter(place, "LlamaForCausalLM", base=base, target_modules=["q_proj"])
    merge = {"op": "merge_adapter", "adapter": str(adapter)}
    for name, operations in (("tokens", (TOKENS, LORA)), ("merged", (merge,))):
        data = recipe(base, place / name, *operations, verify={"lens": name == "tokens"})
        (place / f"{name}.json").write_text(json.dumps(data))
    return place


def printed(command, *arguments, code=0):
    """What a command printed, once it is as its schema says."""
    done = here(command, *arguments, "--json")
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    jsonschema.validate(found, printed_schema(command))
    assert ("error" in found) == bool(done.stderr)
    return found


def test_every_command_prints_what_its_schema_says(folder):
    base, output, merged = folder / "base", folder / "tokens", folder / "merged"
    printed("init", base)
    assert printed("validate", folder / "tokens.json") == {"valid": True, "operations": ["extend_vocab", "add_lora"]}
    plan = printed("plan", folder / "tokens.json")
    report = printed("apply", folder / "tokens.json")
    same = ("strength", "observable", "domain", "assumptions", "scope")
    assert {key: plan["promise"][key] for key in same} == {key: report["promise"][key] for key in same}
    assert plan["promise"].keys() == report["promise"].keys()
    assert printed("apply", "--if-changed", folder / "tokens.json")["up_to_date"] is True
    printed("apply", folder / "merged.json")
    printed("inspect", output)
    texts = folder / "texts.txt"
    texts.write_text("a text of some words\n")
    assert len(printed("inspect", base, "--blocks", "--texts", texts)["blocks"]["blocks"]) == 2
    printed("diff", base, output)
    found = printed("verify", base, output, "--lens", "--signal")
    assert found["verdict"].startswith("verified")
    printed("verify", output, "--adapter", output / "adapter")
    printed("verify", base, merged, "--adapter", folder / "adapter")
    printed("report", output)
    printed("completion", "bash")


@pytest.mark.slow
def test_a_self_test_prints_what_its_schema_says(folder):
    assert printed("selftest", folder / "base", "--no-outputs")["failures"] == []


def test_what_is_found_wrong_has_no_verdict(folder, tmp_path):
    other = build("gpt2", tmp_path / "other")
    found = printed("verify", folder / "base", other, "--no-outputs", code=4)
    assert found["failures"]
    assert found["verdict"] == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("plan", "none.yaml"), 2), (("inspect", "nowhere"), 3), (("apply",), 2), (("verify", "a"), 2)],
)
def test_an_error_is_json_too(tmp_path, monkeypatch, arguments, code):
    monkeypatch.chdir(tmp_path)
    done = here(*arguments, "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    jsonschema.validate(found, printed_schema(arguments[0]))
    assert done.returncode == found["exit_code"] == code
    assert done.stderr == "".join(f"graftkit: {line}\n" for line in found["error"])
    assert found["committed"] is None


def test_a_key_that_no_schema_has_is_seen(folder):
    found = printed("validate", folder / "tokens.json") | {"more": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, printed_schema("validate"))


def test_every_command_has_a_schema_and_the_command_line_prints_it():
    assert {*PRINTED} == {*PRINT_JSON} == {*commands_of(_parser())} - {"schema"}
    for command in PRINTED:
        found = json.loads(here("schema", "--of", command).stdout)
        jsonschema.Draft202012Validator.check_schema(found)
        assert found == json.loads(json.dumps(printed_schema(command)))


def test_the_page_is_made_of_the_schemas():
    spec = importlib.util.spec_from_file_location("json_page", ROOT / "scripts" / "json_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "json.md").read_text(encoding="utf-8") == module.page(), "run scripts/json_page.py"
