"""What makes a green checkpoint useless for chat: a template without Jinja, split markers, padding with the end token."""

import json

import pytest
from support.command import assert_one_line, here
from support.recipes import apply_by_command, recipe

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKERS = ["<|im_start|>", "<|im_end|>"]


def plan(source, place, **fields):
    path = place / "recipe.json"
    path.write_text(json.dumps(recipe(source, place / "out", {"op": "extend_vocab", **fields})))
    return here("plan", path), path


def test_a_file_s_name_is_no_template(demo, tmp_path):
    done, path = plan(demo, tmp_path, chat_template="chatml.jinja")
    assert_one_line(done, 2, "operations.0.chat_template: holds no Jinja")
    assert_one_line(here("validate", path), 2, "write chat_template: {file: ...}")
    (tmp_path / "plain.txt").write_text("You are helpful.")
    done, _ = plan(demo, tmp_path, chat_template={"file": str(tmp_path / "plain.txt")})
    assert_one_line(done, 2, "plain.txt: holds no Jinja")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ bos_token }} hello", "loses the messages: a question and its answer, rendered, gives '<s> hello'"),
        (
            "{{ messages[0].text.lower() }}",
            "loses the messages: a question and its answer, rendered, fails: UndefinedError",
        ),
        (
            "{% for m in messages %}",
            "line 1: Unexpected end of template",
        ),
    ],
)
def test_a_template_that_loses_the_messages_is_refused_by_plan(demo, tmp_path, template, words):
    done, _ = plan(demo, tmp_path, chat_template=template)
    assert_one_line(done, 2, f"operations.0.chat_template: {words}")


def test_a_template_that_names_tools_and_shows_none_is_noted(demo, tmp_path):
    names = "{% if tools %}You have tools.{% endif %}" + CHATML
    done, _ = plan(demo, tmp_path, chat_template=names, special_tokens=MARKERS)
    assert "the chat template names tools and shows none: with one, it gives 'You have tools." in done.stdout
    shows = names.replace("You have tools.", "{{ tools | tojson }}")
    done, _ = plan(demo, tmp_path, chat_template=shows, special_tokens=MARKERS)
    assert done.returncode == 0
    assert "shows none" not in done.stdout


def test_markers_that_are_no_tokens_are_named(demo, tmp_path):
    done, _ = plan(demo, tmp_path, chat_template=CHATML)
    assert "markers that are no tokens: <|im_end|>, <|im_start|>" in done.stdout
    assert "is split into" in done.stdout
    done, _ = plan(demo, tmp_path, chat_template=CHATML, special_tokens=MARKERS)
    assert done.returncode == 0
    assert "no tokens" not in done.stdout


def test_inspect_looks_at_the_template_of_a_checkpoint(demo, tmp_path):
    done, output = apply_by_command(demo, tmp_path, {"op": "extend_vocab", "chat_template": CHATML})
    assert done.returncode == 0, done.stderr
    shown = here("inspect", output).stdout
    assert "markers that are no tokens" in shown
    assert "the chat template loses" not in shown
    for template, words in {
        "chatml.jinja": "the chat template holds no Jinja",
        "{{ bos_token }}{{ messages[0].role }}": "the chat template loses the messages: a question and its answer",
        "{{ messages[0].contents.upper() }}": "rendered, fails: UndefinedError",
        "{% if tools %}You have tools.{% endif %}" + CHATML: "the chat template names tools and shows none",
        "{{ messages[0].content * 10_000_000 }}": "the chat template makes a value of",
    }.items():
        (output / "chat_template.jinja").write_text(template)
        found = here("inspect", output)
        assert (found.returncode, words in found.stdout) == (0, True), found.stdout


@pytest.mark.parametrize("roles", [{"pad_token": "</s>"}, {"pad_token": "<|end|>", "eos_token": "<|end|>"}])
def test_padding_with_the_end_token_is_refused_unless_it_is_meant(demo, tmp_path, roles):
    done, _ = plan(demo, tmp_path, roles=roles)
    assert_one_line(done, 2, "operations.0.roles.pad_token: is the eos_token too")
    done, output = apply_by_command(
        demo, tmp_path / "meant", {"op": "extend_vocab", "roles": roles, "allow_pad_is_eos": True}
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "graft_report.json").read_text())
    (tokens,) = report["tokenization"]
    assert any("the eos_token too" in note for note in tokens["notes"])
