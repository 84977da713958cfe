"""Tokens of extend_vocab from a file, with flags for all of them; those that exist already are named at once, or left out."""

import json

import pytest
from support.command import here
from support.families import TOKENS
from support.recipes import applied, recipe

import graftkit
from graftkit.errors import RecipeError
from graftkit.report.snippets import ids_in_python


def extend(**fields):
    return {"op": "extend_vocab", **fields}


def entries(output):
    listed = json.loads((output / "tokenizer.json").read_text())["added_tokens"]
    return {entry["content"]: entry for entry in listed}


def test_words_of_a_file_are_added_in_its_order(sources, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("quokka \n\n  zebrafish\nbioRxiv\n", encoding="utf-8")
    special = tmp_path / "special.jsonl"
    special.write_text('"<|a|>"\n{"content": "<|b|>", "init": "zeros", "lstrip": true}\n', encoding="utf-8")
    fields = {"tokens": {"file": str(words)}, "special_tokens": {"file": str(special)}, "single_word": True}
    output, report = applied(sources("llama"), tmp_path, extend(**fields))
    names = ["quokka", "zebrafish", "bioRxiv", "<|a|>", "<|b|>"]
    assert report["new_tokens"] == {name: TOKENS + place for place, name in enumerate(names)}
    found = entries(output)
    assert all(found[name]["single_word"] for name in names)
    assert [found[name]["lstrip"] for name in names] == [False, False, False, False, True]
    from safetensors.torch import load_file

    assert not load_file(output / "model.safetensors")["model.embed_tokens.weight"][TOKENS + 4].any()


def test_a_token_s_own_flag_counts_more_than_the_operation_s(sources, tmp_path):
    plan = graftkit.plan(
        recipe(sources("llama"), tmp_path / "out",
               extend(tokens=["quokka", {"content": "zebra", "rstrip": False}], rstrip=True, normalized=False))
    )  # fmt: skip
    found = {entry["content"]: entry for entry in plan.result.documents["tokenizer.json"]["added_tokens"]}
    assert (found["quokka"]["rstrip"], found["zebra"]["rstrip"]) == (True, False)
    assert (found["quokka"]["normalized"], found["zebra"]["normalized"]) == (False, False)


def test_everything_that_is_wrong_with_a_file_is_said_at_once(sources, tmp_path):
    words = tmp_path / "words.jsonl"
    words.write_text('"x y"\n{"content": "a", "inti": 1}\n7\n{"a\n"x y"\n{"content": " "}\n', encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", extend(tokens={"file": str(words)})))
    begins = [f"operations.0.tokens: {words}:{line}: " for line in (2, 3, 4, 6, 5)]
    assert len(caught.value.problems) == len(begins)
    for problem, begin in zip(caught.value.problems, begins, strict=True):
        assert problem.startswith(begin)
    assert caught.value.problems[0].endswith("inti: unknown field; did you mean 'init'?")
    assert caught.value.problems[-1].endswith(f"the token 'x y' is given a second time, after {words}:1")


FILES = {
    "words.txt": ("\n \n", "holds no token"),
    "words.csv": ("a\n", "is neither .txt, with a token a line, nor .jsonl"),
    "words.jsonl": (None, "No such file or directory"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_gives_no_token_is_refused(name, sources, tmp_path):
    text, message = FILES[name]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError) as caught:
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", extend(tokens={"file": str(tmp_path / name)})))
    assert str(caught.value) == f"operations.0.tokens: {tmp_path / name}: {message}"


def test_a_file_that_is_no_text_is_refused(sources, tmp_path):
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        graftkit.plan(recipe(sources("llama"), tmp_path / "out", extend(tokens={"file": str(tmp_path / "words.txt")})))


def test_all_tokens_that_exist_are_named_with_their_lines(sources, tmp_path):
    (tmp_path / "words.txt").write_text("th\nquokka\n</s>\n")
    text = f"""\
version: 1
base_model: {sources("llama")}
operations:
  - op: extend_vocab
    tokens: {{file: {tmp_path}/words.txt}}
    special_tokens:
      - "<|new|>"
      - "<unk>"
output: {tmp_path}/out
"""
    (tmp_path / "recipe.yaml").write_text(text)
    done = here("plan", tmp_path / "recipe.yaml")
    assert done.returncode == 2
    place, words = tmp_path / "recipe.yaml", tmp_path / "words.txt"
    assert done.stderr.splitlines() == [
        f"graftkit: {place}:5: operations.0.tokens: {words}:1: the token 'th' exists already, with id 276; existing: skip leaves"
        " such tokens out",
        f"graftkit: {place}:5: operations.0.tokens: {words}:3: the token '</s>' exists already, with id 2",
        f"graftkit: {place}:8: operations.0.special_tokens.1: the token '<unk>' exists already, with id 3",
    ]
    done = here("plan", place, "operations.0.existing=skip")
    assert done.returncode == 0, done.stderr
    assert "note: 3 listed tokens exist already and are left out: </s>, <unk>, th" in done.stdout


def test_an_operation_that_has_nothing_left_to_add_changes_nothing(sources, tmp_path):
    plan = graftkit.plan(recipe(sources("llama"), tmp_path / "out", extend(tokens=["th"], existing="skip")))
    assert (plan.tensors, plan.values, plan.new_tokens) == ((), (), {})


def test_a_word_that_is_one_piece_in_the_vocabulary_s_own_spelling_exists(tmp_path):
    from support.renamed import checkpoint
    from support.tokenizer_sources import bpe

    source = checkpoint(bpe, tmp_path / "base")
    with pytest.raises(
        RecipeError, match=r"tokens\.0: the token ' category' exists already, it is read as 'Ġcategory', id \d+"
    ):
        graftkit.plan(recipe(source, tmp_path / "out", extend(tokens=[" category"])))
    graftkit.plan(recipe(source, tmp_path / "out", extend(tokens=[{"content": " category", "normalized": False}])))


def test_many_words_are_summed_up(sources, tmp_path):
    """Ten of each are shown; all stand in the report."""
    words = [f"q{number}x" for number in range(60)]
    (tmp_path / "words.txt").write_text("\n".join(words))
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(recipe(sources("llama"), tmp_path / "out", extend(tokens={"file": f"{tmp_path}/words.txt"})))
    )
    done = here("apply", tmp_path / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "… and 50 more (--verbose)" in done.stdout
    assert done.stdout.count(", because of ") == 10
    assert "more texts that new tokens split (graft_report.json)" in done.stdout
    assert f"[*range({TOKENS}, {TOKENS + 60})]" in done.stdout
    report = json.loads((tmp_path / "out/graft_report.json").read_text())
    assert len(report["new_tokens"]) == 60
    assert len(report["tokenization"][0]["differences"]) > 10
    card = (tmp_path / "out/README.md").read_text()
    assert card.count("| `q") == 10
    assert "… and 50 more, in `graft_report.json`" in card


def test_ids_are_written_as_python_reads_them():
    for ids in ([], [5], [*range(4)], [*range(40)], [1, *range(5, 30), 90, 95, 96]):
        assert eval(ids_in_python(ids)) == ids  # noqa: S307 - what somebody pastes
    assert ids_in_python([1, *range(5, 30), 90]) == "[1, *range(5, 30), 90]"
