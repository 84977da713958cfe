"""What a recipe's YAML may hold, what plain scalars mean, and that no text makes reading run away."""

import os
import time

import pytest
import yaml

from graftkit.errors import RecipeError
from graftkit.recipe import load_recipe, parse_recipe
from graftkit.recipe_file.problems import Place
from graftkit.recipe_file.yaml_source import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_yaml

VALID = "version: 1\nbase_model: a\noutput: o\noperations:\n  - op: extend_vocab\n    tokens: [x]\n"


def load(tmp_path, monkeypatch, content):
    (tmp_path / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    return load_recipe("recipe.yaml")


def refusal(tmp_path, monkeypatch, content):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, monkeypatch, content)
    (line,) = caught.value.problems
    return line


ANCHORS = "anchors and aliases (&name, *name) are not allowed; write the value out, or quote it if it is text"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "recipe.yaml: is empty; a recipe begins with version: 1"),
        ("# nothing\n---\n", "recipe.yaml: is empty; a recipe begins with version: 1"),
        (f"{VALID}x: &a b\n", f"recipe.yaml:7: {ANCHORS}"),
        (f"{VALID}x: *a\n", f"recipe.yaml:7: {ANCHORS}"),
        (
            "version: !!python/object/apply:os.system ['true']\n",
            "recipe.yaml:1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; quote the value if it"
            " is text that begins with !",
        ),
        ("version: !!int 1\n", "recipe.yaml:1: the tag 'tag:yaml.org,2002:int' is not allowed; quote the value if it is"
         " text that begins with !"),
        ("version: ! 1\n", "recipe.yaml:1: the tag '!' is not allowed; quote the value if it is text that begins with !"),
        (f"{VALID}---\nversion: 2\n", "recipe.yaml:7: a second document begins here; a recipe is a single document"),
        (f"{VALID}seed: [1\n", "recipe.yaml:8: not valid YAML: while parsing a flow sequence: expected ',' or ']', but got"
         " '<stream end>'"),
        (f'{VALID}x: "\\UFFFFFFFF"', "recipe.yaml:7: not valid YAML: a number in an escape or a directive is out of range"),
        (f"%YAML 1.{'9' * 5000}\n", "recipe.yaml:1: not valid YAML: a number in an escape or a directive is out of range"),
        ("version: 1\n\tseed: 2\n", "recipe.yaml:2: not valid YAML: while scanning for the next token: found character '\\t'"
         " that cannot start any token"),
        (f"{VALID}<<: {{seed: 1}}\n", "recipe.yaml:7: merge keys (<<) are not allowed; write the fields out"),
        (f"{VALID}1: x\n", "recipe.yaml:7: a key must be text, but YAML reads '1' as the number 1; quote it"),
        (f"{VALID}? [a]\n: x\n", "recipe.yaml:7: a key must be text, found a mapping or a list; quote it if it begins with"
         " { or ["),
        (f'{VALID}verify: {{"\\ud800": 1}}\n', "recipe.yaml:7: verify.\\ud800: unknown field; the fields here are: outputs, lens, signal, first_step, paged"),
        (f"{VALID}x: a\x00b\n", "recipe.yaml:7: holds the character U+0000; write it as an escape inside double quotes"),
        (f"{VALID}x: \x1b[31m\n", "recipe.yaml:7: holds the character U+001B; write it as an escape inside double quotes"),
        (VALID.encode() + b"x: \xff\xfe\n", "recipe.yaml:7: is not UTF-8 text (byte 0xFF)"),
        (VALID.encode("utf-16"), "recipe.yaml:1: is not UTF-8 text (byte 0xFF)"),
    ],
)  # fmt: skip
def test_one_clear_line(tmp_path, monkeypatch, content, expected):
    assert refusal(tmp_path, monkeypatch, content) == expected


def test_files_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, expected in [
        ("missing.yaml", "cannot be read: No such file or directory"),
        ("", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("a\0b", "cannot be read: a path cannot hold a null character"),
    ]:
        with pytest.raises(RecipeError) as caught:
            load_recipe(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {expected}".replace("\0", "\\x00")


def alias_bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (alias_bomb(), f"recipe.yaml:1: {ANCHORS}"),
        ("x: " + "[" * 100_000, f"recipe.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        ("x: " + "{a: " * 100_000, f"recipe.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        (
            "".join(f"{' ' * depth}a:\n" for depth in range(500)),
            f"recipe.yaml:64: nested deeper than {MAX_DEPTH} levels",
        ),
        ("- " * 100_000, f"recipe.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        ("x" * (MAX_BYTES + 1), f"recipe.yaml: larger than {MAX_BYTES} bytes"),
    ],
    ids=["aliases", "brackets", "braces", "indents", "dashes", "size"],
)
def test_bombs_are_refused_quickly(tmp_path, monkeypatch, content, expected):
    start = time.perf_counter()
    assert refusal(tmp_path, monkeypatch, content) == expected
    assert time.perf_counter() - start < 5


def test_values_are_counted(monkeypatch):
    monkeypatch.setattr("graftkit.recipe_file.yaml_source.MAX_NODES", 1000)
    text = f"[{'a,' * 1001}]"
    (problem,) = parse_yaml(text, lambda line: Place(f"f:{line}", (0, line))).problems
    assert problem.line() == "f:1: more than 1000 values"
    assert MAX_NODES * 2 < MAX_BYTES


def test_a_long_list_of_tokens_is_no_bomb(tmp_path, monkeypatch):
    tokens = "".join(f'      - "<sid_{i}>"\n' for i in range(5000))
    recipe = load(tmp_path, monkeypatch, VALID.replace("[x]", f"\n{tokens}"))
    assert len(recipe.operations[0].tokens) == 5000


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("~", None), ("null", None), ("", None), ("no", False), ("Off", False), ("YES", True), ("true", True),
        ("0", 0), ("-12", -12), ("+3", 3), ("1.0e-5", 1e-5), ("1.", 1.0), (".5", 0.5), ("-2.5E+3", -2500.0),
        ("1.0e5", 1e5), ("1e-5", "1e-5"), ("010", "010"), ("0x1F", "0x1F"), ("0b1", "0b1"), ("1_000", "1_000"),
        ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), (".inf", ".inf"), (".nan", ".nan"), ("=", "="), ("y", "y"),
        ("'no'", "no"), ('"12"', "12"), ("nO", "nO"), ("9" * 101, "9" * 101), ("١٢", "١٢"),
        (r'"\ud83d\ude00"', "😀"), ("😀", "😀"), ("<|x|>", "<|x|>"), ("|\n  a\n  b\n", "a\nb\n"),
    ],
)  # fmt: skip
def test_what_a_scalar_means(written, value):
    read = parse_yaml(f"x: {written}", lambda line: Place("", (0, line))).data["x"]
    assert (read, type(read)) == (value, type(value))


def test_bytes_before_and_line_ends_do_not_matter(tmp_path, monkeypatch):
    plain = load(tmp_path, monkeypatch, VALID)
    assert load(tmp_path, monkeypatch, b"\xef\xbb\xbf" + VALID.encode()) == plain
    assert load(tmp_path, monkeypatch, f"%YAML 1.1\n---\n{VALID}...\n".replace("\n", "\r\n")) == plain
    assert parse_recipe(yaml.safe_load(VALID)) == plain


def test_several_bad_keys_are_reported_beside_other_problems(tmp_path, monkeypatch):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, monkeypatch, f"{VALID}1: x\nseed: 1\nseed: 2\nverify: {{outputs: 3, outputs: 4}}\nseed: 3\n")
    assert caught.value.problems == [
        "recipe.yaml:7: a key must be text, but YAML reads '1' as the number 1; quote it",
        "recipe.yaml:9: seed: given a second time, after line 8",
        "recipe.yaml:10: verify.outputs: given a second time, after line 10",
        "recipe.yaml:10: verify.outputs: must be true or false, found the number 3",
        "recipe.yaml:11: seed: given a second time, after line 8",
    ]


def test_a_surrogate_in_a_key_from_a_dict():
    with pytest.raises(RecipeError, match=r"verify\.\\ud800: unknown field"):
        parse_recipe({**yaml.safe_load(VALID), "verify": {"\ud800": 1}})
