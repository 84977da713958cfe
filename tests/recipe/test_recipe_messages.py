"""Every problem is one plain sentence at its line: all of them, word for word."""

import copy
import math
from typing import Annotated, Literal, get_args

import pydantic
import pytest
from pydantic import Field

from graftkit.errors import RecipeError
from graftkit.recipe import Recipe, load_recipe, parse_recipe
from graftkit.recipe.chat_template import NO_JINJA
from graftkit.recipe.choice import OneOf
from graftkit.recipe.extend_vocab import PAD_IS_EOS
from graftkit.recipe.messages import SENTENCES, note_errors
from graftkit.recipe.operations import Operation
from graftkit.recipe.spec import Spec
from graftkit.recipe_file.problems import Document
from graftkit.recipe_file.wording import did_you_mean

HEAD = "version: 1\nbase_model: a\noutput: o\noperations:\n"
OPERATIONS = ", ".join(spec.model_fields["op"].default for spec in get_args(get_args(Operation)[0]))
SCHEMES = "mean, subword_mean, describe, copy, mean_cov, normal, zeros, distill"
FIELDS = (
    "op, tokens, special_tokens, roles, existing, lstrip, rstrip, single_word, normalized, allow_pad_is_eos, init, output_init,"
    " pad_to_multiple_of, chat_template"
)  # fmt: skip


def problems_of(tmp_path, monkeypatch, text):
    (tmp_path / "recipe.yaml").write_bytes(text.encode())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml")
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_all_problems_at_once_in_line_order(tmp_path, monkeypatch):
    text = """\
version: 2
base_model: no
sed: 1
operations:
  - op: extend_vocb
  - op: extend_vocab
    tokens:
      - a
      - 12
      - a
      - "  "
      - {content: b, inti: mean}
      - {content: c, init: copy}
    special_tokens:
      - content: d
        init: {scheme: mean_cov, eps: 1e-5}
      - init: men
    roles:
      pad_tok: x
      eos_token: 1.50
    pad_to_multiple_of: "64"
  - op: extend_vocab
  - tokens: [x]
verify: {outputs: "true"}
seed: -1
seed: 2
on: 3
"""
    assert problems_of(tmp_path, monkeypatch, text) == [
        "recipe.yaml:1: version: must be 1, found the number 2",
        "recipe.yaml:1: output: required field is missing",
        'recipe.yaml:2: base_model: must be text, but YAML reads no as false; quote it: "no"',
        "recipe.yaml:3: sed: unknown field; did you mean 'seed'?",
        "recipe.yaml:5: operations.0.op: unknown operation 'extend_vocb'; did you mean 'extend_vocab'?",
        'recipe.yaml:9: operations.1.tokens.1: must be text, but YAML reads 12 as the number 12; quote it: "12"',
        "recipe.yaml:10: operations.1.tokens.2: the token 'a' is given a second time, after tokens.0",
        "recipe.yaml:11: operations.1.tokens.3: must not be only white space",
        "recipe.yaml:12: operations.1.tokens.4.inti: unknown field; did you mean 'init'?",
        "recipe.yaml:13: operations.1.tokens.5.init: 'copy' needs token; write {scheme: copy, token: ...}",
        "recipe.yaml:16: operations.1.special_tokens.0.init.eps: must be a number, but YAML reads 1e-5 as text;"
        " write 1.0e-5",
        "recipe.yaml:17: operations.1.special_tokens.1.content: required field is missing",
        "recipe.yaml:17: operations.1.special_tokens.1.init: unknown scheme 'men'; did you mean 'mean'?",
        "recipe.yaml:19: operations.1.roles.pad_tok: unknown field; did you mean 'pad_token'?",
        "recipe.yaml:20: operations.1.roles.eos_token: must be text, but YAML reads 1.50 as the number 1.5;"
        ' quote it: "1.50"',
        "recipe.yaml:21: operations.1.pad_to_multiple_of: must be a whole number, found the text '64';"
        " remove the quotes",
        "recipe.yaml:22: operations.2: adds nothing; give one of tokens, special_tokens, roles, pad_to_multiple_of,"
        " chat_template",
        f"recipe.yaml:23: operations.3.op: required field is missing; it is one of: {OPERATIONS}",
        "recipe.yaml:24: verify.outputs: must be true or false, found the text 'true'; remove the quotes",
        "recipe.yaml:25: seed: must be at least 0, found the number -1",
        "recipe.yaml:26: seed: given a second time, after line 25",
        "recipe.yaml:27: a key must be text, but YAML reads 'on' as true; quote it",
    ]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("tokens: x", "tokens: must be a list, found the text 'x'"),
        ("tokens: [[x]]", "tokens.0: must be text, found a list"),
        ("tokens: [x, ]\n    tokens: [y]", "tokens: given a second time, after line 6"),
        ("tokens: [~, x]", "tokens.0: must be text, found nothing (null)"),
        ("tokens: ['']", "tokens.0: must not be empty"),
        (r'tokens: ["a\ud800"]', "tokens.0: holds U+D800, half of a surrogate pair, which no file can store"),
        ("tokens: [x, {content: [y]}]", "tokens.1.content: must be text, found a list"),
        ("tokens: [x, {content: y, lstrip: 1}]", "tokens.1.lstrip: must be true or false, found the number 1"),
        (
            "special_tokens: [x, {content: y, extra: 1}]",
            "special_tokens.1.extra: unknown field; the fields here are: content, init, output_init, lstrip, rstrip,"
            " single_word, normalized",
        ),
        (
            "tokens: [x]\n    special_tokens: [{content: x}]",
            "special_tokens.0: the token 'x' is given a second time, after tokens.0",
        ),
        ("tokens: [x]\n    rank: 8", f"rank: unknown field; the fields here are: {FIELDS}"),
        ("tokens: [x]\n    special: [y]", "special: unknown field; did you mean 'special_tokens'?"),
        ("roles: [x]", "roles: must be a mapping, found a list"),
        ("roles: {pad_token: ''}", "roles.pad_token: must not be empty"),
        (
            "roles: {zzz: x}",
            "roles.zzz: unknown field; the fields here are: bos_token, eos_token, unk_token, sep_token, pad_token,"
            " cls_token, mask_token",
        ),
        (
            "tokens: [x]\n    init: no",
            f"init: must be one of {SCHEMES}, or a mapping with 'scheme', found false",
        ),
        (
            "tokens: [x]\n    init: ~",
            f"init: must be one of {SCHEMES}, or a mapping with 'scheme', found nothing (null)",
        ),
        ("tokens: [x]\n    init: {std: 1}", f"init.scheme: required field is missing; it is one of: {SCHEMES}"),
        (
            "tokens: [x]\n    init: {scheme: 1}",
            f"init.scheme: must be a word, found the number 1; it is one of: {SCHEMES}",
        ),
        ("tokens: [x]\n    init: {scheme: xyz}", f"init.scheme: unknown scheme 'xyz'; it is one of: {SCHEMES}"),
        ("tokens: [x]\n    init: copy", "init: 'copy' needs token; write {scheme: copy, token: ...}"),
        ("tokens: [x]\n    init: {scheme: copy}", "init.token: required field is missing"),
        ("tokens: [x]\n    init: {scheme: mean, eps: 1.0}", "init.eps: unknown field; the fields here are: scheme"),
        (
            "tokens: [x]\n    init: {scheme: mean_cov, eps: 0}",
            "init.eps: must be greater than 0, found the number 0",
        ),
        (
            "tokens: [x]\n    init: {scheme: normal, std: '0.02'}",
            "init.std: must be a number, found the text '0.02'; remove the quotes",
        ),
        (
            "tokens: [x]\n    init: {scheme: normal, std: 2E3}",
            "init.std: must be a number, but YAML reads 2E3 as text; write 2.0e+3",
        ),
        ("tokens: [x]\n    init: {scheme: normal, std: x}", "init.std: must be a number, found the text 'x'"),
        (
            "tokens: [x]\n    init: {scheme: normal, std: 1.0e999}",
            "init.std: must be a finite number, found the number inf",
        ),
        ("pad_to_multiple_of: 0", "pad_to_multiple_of: must be at least 1, found the number 0"),
        (
            "pad_to_multiple_of: 64000000000",
            "pad_to_multiple_of: must be at most 1048576, found the number 64000000000",
        ),
        ("pad_to_multiple_of: 1.5", "pad_to_multiple_of: must be a whole number, found the number 1.5"),
        ("pad_to_multiple_of: yes", "pad_to_multiple_of: must be a whole number, found true"),
        (
            "pad_to_multiple_of: 1e3",
            "pad_to_multiple_of: must be a whole number, found the text '1e3'; write out its digits",
        ),
        ("chat_template: ['x']", "chat_template: must be text, found a list"),
        ("chat_template: {}", "chat_template.file: required field is missing"),
        (
            "chat_template: {file: 3}",
            'chat_template.file: must be text, but YAML reads 3 as the number 3; quote it: "3"',
        ),
        ("chat_template: '{{ x }}'\n    init: zeros", "init: has no effect without tokens, special_tokens or roles"),
        ("chat_template: chatml.jinja", f"chat_template: {NO_JINJA}"),
        ("roles: {pad_token: </s>, eos_token: </s>}", f"roles.pad_token: {PAD_IS_EOS}"),
        (
            "roles: {unk_token: <u>}\n    allow_pad_is_eos: true",
            "allow_pad_is_eos: has no effect without a pad_token or an eos_token in roles",
        ),
        (
            "pad_to_multiple_of: 8\n    output_init: mean",
            "output_init: has no effect without tokens, special_tokens or roles",
        ),
    ],
)
def test_one_problem_of_extend_vocab(tmp_path, monkeypatch, operation, expected):
    text = f"{HEAD}  - op: extend_vocab\n    {operation}\n"
    path, _, message = expected.partition(": ")
    (line,) = [line for line in problems_of(tmp_path, monkeypatch, text) if "adds nothing" not in line]
    place, _, rest = line.partition(": ")
    assert rest == f"operations.0.{path}: {message}"
    assert int(place.removeprefix("recipe.yaml:")) == text.count("\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", "recipe.yaml:1: must be a mapping, found a list"),
        ("just text", "recipe.yaml:1: must be a mapping, found the text 'just text'"),
        (f"{HEAD}  []", "recipe.yaml:4: operations: must hold at least 1 item, found 0"),
        (
            f"{HEAD}  - extend_vocab",
            "recipe.yaml:5: operations.0: must be a mapping with 'op', found the text 'extend_vocab'",
        ),
        (
            f"{HEAD}  - op: [x]",
            f"recipe.yaml:5: operations.0.op: must be a word, found a list; it is one of: {OPERATIONS}",
        ),
    ],
)
def test_one_problem_of_the_recipe(tmp_path, monkeypatch, text, expected):
    assert problems_of(tmp_path, monkeypatch, text) == [expected]


def test_from_a_dict_there_is_no_file_and_no_line():
    data = {
        "version": True,
        "base_model": 5,
        "operations": [{"op": "extend_vocab", 3: 4, "tokens": ["x"]}],
        "outputs": "x",
    }
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data)
    assert caught.value.problems == [
        "version: must be 1, found true",
        "base_model: must be text, found the number 5",
        "operations.0.3: a key must be text, found the number 3",
        "output: required field is missing",
        "outputs: unknown field; did you mean 'output'?",
    ]
    with pytest.raises(RecipeError, match=r"^must be a mapping, found a value of type set$"):
        parse_recipe({1, 2})


def test_what_a_message_quotes_is_escaped_and_cut(tmp_path, monkeypatch):
    lines = problems_of(tmp_path, monkeypatch, f'{HEAD}  - op: "\\e[31m{"x" * 100}"\n"\\e]0;t\\a": 1\n')
    assert (
        lines[0]
        == f"recipe.yaml:5: operations.0.op: unknown operation '\\x1b[31m{'x' * 54}…'; it is one of: {OPERATIONS}"
    )
    assert lines[1].startswith("recipe.yaml:6: \\x1b]0;t\\x07: unknown field")


def test_a_short_name_is_found_in_a_longer_slip():
    assert did_you_mean("ranks", ["lora_alpha", "r", "target_modules"]) == "r"
    assert did_you_mean("inti", ["init", "output_init"]) == "init"
    assert did_you_mean("", ["init"]) is None


WRONG = (None, True, False, 0, 12, -1, 2**70, 10**5000, 1.5, math.nan, math.inf, "", " ", "x", "\ud800", "mean", b"x")
WRONG_CONTAINERS = ([], {}, ["x"], {"x": 1}, {"scheme": "normal", "std": -1}, {3: 4}, {"op": "x"}, object(), {1})


def _spots(node, path=()):
    yield path
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield from _spots(value, (*path, key))


def test_every_type_of_error_has_its_sentence():
    """Put every kind of wrong value at every place: pydantic's own wording must never be needed."""
    full = {
        "version": 1,
        "base_model": "a",
        "revision": "r",
        "seed": 0,
        "allow_nonfinite": False,
        "operations": [
            {
                "op": "extend_vocab",
                "tokens": ["a", {"content": "b", "init": "mean", "lstrip": True, "normalized": True}],
                "special_tokens": [{"content": "c", "init": {"scheme": "describe", "text": "d"}}],
                "roles": {"pad_token": "p"},
                "init": {"scheme": "mean_cov", "eps": 0.1},
                "output_init": {"scheme": "normal", "std": 0.1},
                "pad_to_multiple_of": 8,
                "chat_template": {"file": "f"},
            }
        ],
        "verify": {"outputs": True},
        "output": "o",
    }
    parse_recipe(full)
    seen = set()
    for path in _spots(full):
        for wrong in (*WRONG, *WRONG_CONTAINERS):
            data = copy.deepcopy(full)
            if path:
                holder = data
                for step in path[:-1]:
                    holder = holder[step]
                holder[path[-1]] = wrong
            else:
                data = wrong
            seen |= _types_of_errors(data)
    assert seen == set(SENTENCES)


def _types_of_errors(data):
    types = set()
    try:
        Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        types = {details["type"] for details in error.errors()}
        document = Document(data)
        note_errors(error, document)
        for line in document.lines():
            assert line.isprintable()
            assert "\0" not in line
            assert "Input should" not in line
    return types


class _Left(Spec):
    op: Literal["left"] = "left"
    share: Annotated[float, Field(le=1)] = 1.0
    side: Literal["inner", "outer"] = "inner"


class _Right(Spec):
    op: Literal["right"] = "right"
    size: int


class _Pair(Spec):
    items: tuple[Annotated[_Left | _Right, OneOf("op", "operation")], ...]


def test_a_union_of_several_shows_the_errors_of_the_member_that_was_meant():
    data = {"items": ({"op": "left", "share": 2, "side": "iner"}, {"op": "right", "share": 2}, {"op": "lef"})}
    with pytest.raises(pydantic.ValidationError) as caught:
        _Pair.model_validate(data)
    document = Document({"items": list(data["items"])})
    note_errors(caught.value, document)
    assert document.lines() == [
        "items.0.share: must be at most 1, found the number 2",
        "items.0.side: unknown value 'iner'; did you mean 'inner'?",
        "items.1.size: required field is missing",
        "items.1.share: unknown field; the fields here are: op, size",
        "items.2.op: unknown operation 'lef'; did you mean 'left'?",
    ]
