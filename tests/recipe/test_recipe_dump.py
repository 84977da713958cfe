"""A dumped recipe loads to an equal one, whatever texts it holds."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from graftkit.recipe import (
    ChatTemplateFile,
    Copy,
    Describe,
    ExtendVocab,
    Mean,
    MeanCov,
    Normal,
    Recipe,
    SubwordMean,
    TokenSpec,
    VerifyOptions,
    Zeros,
    dump_recipe,
    load_recipe,
)
from graftkit.recipe_file.problems import Place
from graftkit.recipe_file.yaml_source import parse_yaml

TRICKY = ["no", "12", "1.5", "1e5", "1.0e5", "0x1F", "010", "0o7", "12:30", "2024-01-01", "~", "null", "<<", "=", "- a", "a: b",
          "a #b", "&a", "*a", "!a", "%a", "@a", "`a", "|", ">", "'", '"', " a ", "a\n", "\na", "a\n b", "\ta\n", "a\r\nb", "\x85x",
          "\u2028x", "\ufeffx", "\x00x", "\x1b[0m", "😀", "x\n\n\n", "#a", "[", "{", "? a", ": a", "a\n\tb", "---", "...", "y", "é"]  # fmt: skip

texts = (st.text(max_size=30) | st.sampled_from(TRICKY)).filter(str.strip)
paths = texts.filter(lambda text: not text.startswith("~"))  # which is somebody's home
positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
schemes = st.one_of(
    st.sampled_from([Mean(), SubwordMean(), Zeros(), Normal(), MeanCov()]),
    st.builds(Describe, text=texts),
    st.builds(Copy, token=texts),
    st.builds(MeanCov, eps=positive),
    st.builds(Normal, std=positive),
)
tokens = st.builds(
    TokenSpec,
    content=texts,
    init=st.none() | schemes,
    output_init=st.none() | schemes,
    lstrip=st.booleans(),
    rstrip=st.booleans(),
    single_word=st.booleans(),
    normalized=st.none() | st.booleans(),
)
roles = st.dictionaries(st.sampled_from(["bos_token", "pad_token", "mask_token"]), texts)


@st.composite
def operations(draw):
    some = draw(st.lists(tokens, max_size=4, unique_by=lambda token: token.content))
    split = draw(st.integers(0, len(some)))
    given_roles = draw(roles)
    fields = {
        "tokens": some[:split],
        "special_tokens": some[split:],
        "roles": given_roles,
        "pad_to_multiple_of": draw(st.integers(1, 4096)),
        "chat_template": draw(st.none() | texts.map("{{{{ x }}}}{}".format) | st.builds(ChatTemplateFile, file=paths)),
    }
    if some or given_roles:
        fields |= {"init": draw(schemes), "output_init": draw(st.none() | schemes)}
    return ExtendVocab(**fields)


recipes = st.builds(
    Recipe,
    version=st.just(1),
    base_model=paths,
    revision=st.none() | texts,
    seed=st.integers(0, 2**63 - 1),
    allow_nonfinite=st.booleans(),
    operations=st.lists(operations(), min_size=1, max_size=2),
    verify=st.builds(VerifyOptions, outputs=st.booleans(), lens=st.booleans(), signal=st.booleans()),
    output=paths,
)


@given(recipe=recipes)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_dump_then_load_is_the_identity(recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8", newline="")
    loaded = load_recipe(path)
    assert loaded == recipe
    assert dump_recipe(loaded) == dump_recipe(recipe)


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_text_stays_text_for_every_reader(text):
    if not text.strip():
        return
    recipe = Recipe(version=1, base_model="m", revision=text, operations=[ExtendVocab(tokens=[text])], output="o")
    dumped = dump_recipe(recipe)
    assert parse_yaml(dumped, lambda line: Place("", (0, line))).data["revision"] == text
    assert yaml.safe_load(dumped)["operations"][0]["tokens"] == [text]


def test_text_that_yaml_1_2_reads_as_a_number_is_quoted():
    recipe = Recipe(version=1, base_model="1e5", operations=[ExtendVocab(tokens=["0o7"])], output="1.0e5")
    assert "base_model: '1e5'" in dump_recipe(recipe)
    assert "- '0o7'" in dump_recipe(recipe)
    assert "output: '1.0e5'" in dump_recipe(recipe)


def test_what_a_dump_looks_like():
    recipe = Recipe(
        version=1,
        base_model="acme/tiny",
        operations=(
            ExtendVocab(
                tokens=("a", TokenSpec(content="b", init=Copy(token="a"), normalized=False)),
                roles={"pad_token": "<|pad|>"},
                output_init=MeanCov(),
                chat_template="{% for m in messages %}\n{{ m.content }}\n{% endfor %}",
            ),
            ExtendVocab(pad_to_multiple_of=64),
        ),
        output="out",
    )
    assert (
        dump_recipe(recipe)
        == """\
version: 1
base_model: acme/tiny
seed: 0
allow_nonfinite: false
unknown_tensors: refuse
operations:
  - op: extend_vocab
    tokens:
      - a
      - content: b
        init:
          scheme: copy
          token: a
        normalized: false
    roles:
      pad_token: <|pad|>
    init: mean
    output_init:
      scheme: mean_cov
      eps: 1.0e-05
    chat_template: |-
      {% for m in messages %}
      {{ m.content }}
      {% endfor %}
  - op: extend_vocab
    pad_to_multiple_of: 64
verify:
  outputs: true
  lens: false
  signal: false
  first_step: false
  paged: auto
output_format: safetensors
output: out
"""
    )
