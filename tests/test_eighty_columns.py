"""What each command prints on a terminal of 80 columns: whole words, names that lose their middle, the right plurals, no bar left."""

import dataclasses
import re
import sys

import pytest
from support.recipes import recipe
from support.screen import Terminal, lines_on_screen

import graftkit
from graftkit import cli
from graftkit.report import terminal
from graftkit.report.terminal.column_widths import column_widths, shortened_words
from graftkit.report.terminal.selftest import print_selftest
from graftkit.selftest.report import PlantedFault, Selftest

COLUMNS = 80
GROWS = {
    "op": "extend_vocab", "tokens": ["coroutine"], "special_tokens": ["<|a_long_name_for_the_result_of_a_call|>"],
}  # fmt: skip
ADAPTS = {"op": "add_lora", "r": 4, "train_new_tokens": True}

#: Words that stand for nothing: `0 notes`; and one thing in the plural, `1 tensors`.
ZERO, WRONG_PLURAL = (
    re.compile(r"(?<![\w.,/-])0 (?!of )[a-z]{3,}"),
    re.compile(r"(?<![\w.,/-])1 (?!has|is)[a-z]{3,}s\b(?<!ss)"),
)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture(scope="module")
def made(demo, tmp_path_factory):
    """A report, and the folder of what it tells of, under a name that is longer than a line."""
    output = (
        tmp_path_factory.mktemp("eighty")
        / "an_output_whose_path_is_longer_than_any_line_of_a_terminal"
        / "of_eighty_columns"
    )
    output.parent.mkdir()
    return graftkit.apply(recipe(demo, output, GROWS, ADAPTS, verify={"outputs": False})), output


def printed(show, monkeypatch):
    """The lines on a terminal, and the words that stand in a file."""
    watched = Terminal()
    monkeypatch.setattr(sys, "stdout", watched)
    show()
    monkeypatch.setattr(sys, "stdout", file := type(watched).__base__())
    show()
    return re.sub(r"\x1b\[[\d;]*m", "", watched.getvalue()).splitlines(), set(file.getvalue().split())


def before_pasted(lines):
    """The lines without those that are to be pasted elsewhere."""
    return lines[: lines.index("to train from it")] if "to train from it" in lines else lines


def broken_words(lines, words):
    """Words on the terminal that no line of a file has: neither whole nor with another middle; pasted lines are the reader's."""
    shown = " ".join(before_pasted(lines)).split()
    ends = [word.partition("…") for word in shown if "…" in word and word not in words]
    lost = [
        f"{head}…{tail}"
        for head, _, tail in ends
        if not any(word.startswith(head) and word.endswith(tail) for word in words)
    ]
    return [word for word in shown if "…" not in word and word not in words and word != "#"] + lost


def seen(demo, made):
    """Each command, by its name, as it prints."""
    report, output = made
    faults = (
        PlantedFault("a row of the input table swapped with another", "model.embed_tokens.weight", {"bytes": "", "outputs": ""},
                     weights=0.25, outputs=1e-3),
        PlantedFault("a bias that is lost", not_applicable="the model has no bias in any of its linears"),
    )  # fmt: skip
    many = recipe(demo, output.parent / "reinit", {"op": "reinit", "layers": [2]})
    none_wrong = Selftest(str(output), (), faults, (), 1.0)
    return {
        "plan": lambda: terminal.print_plan(report.plan, verbose=False),
        "plan of many": lambda: terminal.print_plan(graftkit.plan(many), verbose=True),
        "apply": lambda: terminal.print_report(report),
        "inspect": lambda: terminal.print_inspection(graftkit.inspect(demo)),
        "diff": lambda: terminal.print_difference(graftkit.diff(demo, output), verbose=False),
        "diff of equals": lambda: terminal.print_difference(graftkit.diff(demo, demo), verbose=False),
        "verify": lambda: terminal.print_verification(graftkit.verify(demo, output, outputs=False)),
        "selftest": lambda: print_selftest(none_wrong),
        "report": lambda: cli.run(["report", str(output)]),
        "init": lambda: cli.run(["init", str(demo), "--for", "classifier"]),
    }


COMMANDS = (
    "plan",
    "plan of many",
    "apply",
    "inspect",
    "diff",
    "diff of equals",
    "verify",
    "selftest",
    "report",
    "init",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_word_is_broken_and_nothing_is_counted_wrong(command, demo, made, monkeypatch):
    shows = seen(demo, made)
    assert tuple(shows) == COMMANDS
    lines, words = printed(shows[command], monkeypatch)
    assert any(lines)
    if command not in ("report", "init"):  # a path alone, and a file's text
        assert broken_words(lines, words) == []
        long = [line for line in before_pasted(lines) if len(line) > COLUMNS and len(line.split()) > 1]
        assert long == []
    if command == "apply":
        given = made[0].snippets.splitlines()
        assert [line for line in lines if line in given and line[0] != "#"] == [
            line for line in given if line[0] != "#"
        ]
    text = "\n".join(lines)
    assert not ZERO.findall(text), text
    assert not WRONG_PLURAL.findall(text), text


def test_the_lines_of_a_draft_fit(demo, monkeypatch):
    watched = Terminal()
    monkeypatch.setattr(sys, "stdout", watched)
    for kind in ("tools", "classifier", "lora"):
        assert cli.run(["init", str(demo.relative_to(demo.parent.parent.parent)), "--for", kind]) == 0
    assert max(map(len, watched.getvalue().splitlines())) <= COLUMNS


def test_a_broken_word_is_seen():
    assert broken_words(["model.embed_to", "kens.weight"], {"model.embed_tokens.weight"}) == [
        "model.embed_to",
        "kens.weight",
    ]
    assert broken_words(["model.em…s.weight"], {"model.embed_tokens.weight"}) == []
    assert broken_words(["model.em…s.bias"], {"model.embed_tokens.weight"}) == ["model.em…s.bias"]
    assert ZERO.findall("and 0 more") == ["0 more"]
    assert not ZERO.findall("0 of 12 copies, 1.0 more, max |Δ| 0")
    assert WRONG_PLURAL.findall("1 tensors") == ["1 tensors"]
    assert not WRONG_PLURAL.findall("1 tensor, 21 tensors, 0.1 tensors, 1 class")


def test_no_bar_is_left_behind(demo, tmp_path, monkeypatch):
    import json

    watched = Terminal()
    monkeypatch.setattr(sys, "stdout", watched)
    monkeypatch.setattr(sys, "stderr", watched)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe(demo, tmp_path / "out", GROWS, verify={"outputs": False})))
    assert cli.run(["apply", str(file)]) == 0
    assert "left" in watched.getvalue(), "a bar was shown, and what is left"
    lines = lines_on_screen(watched.getvalue(), COLUMNS)
    assert lines[0].startswith("plan ")
    assert not any("━" in line or "%" in line for line in lines)


def test_the_weights_of_a_block_stay_apart():
    names = [
        f"model.layers.2.{name}.weight"
        for name in ("mlp.up_proj", "self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    ]
    shown = shortened_words(names, 19)
    assert len(set(shown)) == len(names)
    assert all(len(name) == 19 and name.endswith("_proj.weight") for name in shown)
    assert shortened_words(["no name here", "x" * 30], 19)[0] == "no name here"


def test_columns_fit_and_names_give_way_before_shapes():
    headers = ("name", "shape", "change")
    content = [["model.layers.10.self_attn.q_proj.weight"], ["2048 x 160"], ["a sentence of several words about it"]]
    for width in (40, 60, 80, 100):
        found = column_widths(headers, content, width, whole=False)
        assert sum(found) + 4 <= width
    assert column_widths(headers, content, 60, whole=False)[1] == len("2048 x 160")
    assert column_widths(headers, content, 40, whole=True)[0] == len(content[0][0])


def test_a_report_of_one_is_in_the_singular(demo, monkeypatch):
    found = graftkit.diff(demo, demo)
    one = dataclasses.replace(found, equal=1)
    lines, _ = printed(lambda: terminal.print_difference(one, verbose=False), monkeypatch)
    assert lines[0] == "1 tensor equal"
