"""learn_tokens over each kind of tokenizer: old ids and old splits stay, each new piece is read, and the figures are what they say."""

import json
import re
import shutil

import pytest
import torch
from support.command import ROOT, assert_one_line, here
from support.donors import write_donor
from support.families import build
from support.quantized import quantized
from support.recipes import applied, apply_by_command, load, recipe
from support.renamed import checkpoint
from support.tokenizer_sources import TEXT, bpe, bpe_legacy, llama, unigram, wordlevel, wordpiece, write
from transformers import AutoTokenizer

import graftkit
from graftkit.errors import RecipeError
from graftkit.initializers.seeding import seed_of
from graftkit.operations.vocabulary import corpus as corpus_module
from graftkit.operations.vocabulary.corpus import Corpus

KINDS = (bpe, bpe_legacy, wordpiece, unigram, llama)
EXAMPLES = ROOT / "recipes/examples/docstrings.jsonl"
OTHERS = ("昨天下雨。", "Größe, naïve 😀", "xyz!qq  \n\t9", "zzz", "")


def learn(size=60, **fields):
    return {"op": "learn_tokens", "texts": str(EXAMPLES), "size": size, **fields}


def texts():
    return [json.loads(line)["text"] for line in EXAMPLES.read_text().splitlines()]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {make: checkpoint(make, tmp_path_factory.mktemp(make.__name__) / "base") for make in KINDS}


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_tokenizer_gets_pieces_of_its_own_model(make, bases, tmp_path):
    source = bases[make]
    output, report = applied(source, tmp_path, learn())
    assert report["promise"]["strength"] == report["promise"]["measured"] == "bitwise"
    old, new = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(output)
    learned = report["new_tokens"]
    assert sorted(learned.values()) == list(range(len(old), len(old) + 60))
    assert {token: new.get_vocab()[token] for token in (*old.get_vocab(), *learned)} == {**old.get_vocab(), **learned}
    assert new.added_tokens_decoder.keys() == old.added_tokens_decoder.keys()
    seen = set()
    for text in (*texts(), *TEXT, *OTHERS):
        before, after = (one(text, add_special_tokens=False)["input_ids"] for one in (old, new))
        seen |= {*after}
        if not set(learned.values()) & {*after}:
            assert before == after
        assert new.decode(after) == old.decode(before)
    assert len(seen & {*learned.values()}) >= (60 if make in (wordpiece, unigram) else 50)
    figures = learned_figures(report)
    held_out = figures["held_out"]
    assert (figures["pieces"], figures["learning_texts"], held_out["texts"]) == (60, 135, 15)
    assert 0 < held_out["after"] < held_out["before"]
    assert held_out["tokens_per_byte_after"] < held_out["tokens_per_byte_before"]
    assert len(figures["most_frequent"]) == 10
    assert (held_out["moved"] == 0) == (make is not wordpiece)


def learned_figures(report):
    return next(found["learned"] for found in report["figures"].values() if "learned" in found)


def test_the_figures_are_what_transformers_counts(bases, tmp_path):
    output, report = applied(bases[bpe], tmp_path, learn())
    figures = learned_figures(report)
    new, lines = AutoTokenizer.from_pretrained(output), texts()
    counted = [len(new(text, add_special_tokens=False)["input_ids"]) for text in lines]
    whole = "".join(lines)
    corpus = Corpus.survey(EXAMPLES, 0.1, seed_of(0, 0, "held out"))
    held_out = [place for place in range(len(lines)) if place in corpus.held_out]
    assert figures["held_out"]["after"] == sum(counted[place] for place in held_out)
    assert figures["held_out"]["bytes"] == sum(len(lines[place].encode()) for place in held_out)
    learning = [text for place, text in enumerate(lines) if place not in corpus.held_out]
    ids = [index for text in learning for index in new(text, add_special_tokens=False)["input_ids"]]
    assert {token: ids.count(report["new_tokens"][token]) for token in figures["most_frequent"]} == figures[
        "most_frequent"
    ]
    assert len(whole) > 1000
    again, _ = apply_by_command(bases[bpe], tmp_path / "again", {**learn(), "held_out": 0.5})
    assert "75 texts" in again.stdout


def test_rows_are_the_mean_of_the_old_pieces(sources, tmp_path):
    source = sources("llama")
    output, report = applied(source, tmp_path, learn(20))
    (old, _), (new, _) = load(source), load(output)
    tokenizer, backend = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(source).backend_tokenizer
    before, after = (model.get_input_embeddings().weight.detach() for model in (old, new))
    assert torch.equal(before[: len(tokenizer)], after[: len(tokenizer)])
    for token, index in report["new_tokens"].items():
        pieces = [piece.id for piece in backend.model.tokenize(token)]
        assert torch.allclose(after[index], before[pieces].mean(0), atol=1e-6)
    assert [index for index in report["new_tokens"].values() if index < 331] == list(range(320, 331))
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 340


def test_the_recipe_is_applied_by_the_command_and_verify_accepts_it_with_and_without_the_report(tmp_path):
    done = here("apply", "recipes/learn_tokens.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "note: 100 pieces learned from 135 texts" in done.stdout
    before, after = map(
        float, re.search(r"on 15 held-out texts \([\d,]+ bytes\): (\S+) before, (\S+) after", done.stdout).groups()
    )
    assert 0.2 < after < before < 0.5
    demo = str(ROOT / "recipes/models/demo-lm")
    found = graftkit.verify(demo, str(tmp_path / "out"))
    assert found.failures == ()
    assert "100 learned pieces" in found.tokenization.figure()
    (tmp_path / "out/graft_report.json").unlink()
    assert graftkit.verify(demo, str(tmp_path / "out"), outputs=False).failures == ()


def test_it_composes_with_added_tokens_before_and_behind_with_another_learning_and_with_an_adapter(bases, tmp_path):
    source = bases[bpe]
    before = {"op": "extend_vocab", "special_tokens": ["<|tool_call|>"], "tokens": ["zqx"]}
    behind = {"op": "extend_vocab", "special_tokens": ["<|end|>"]}
    output, report = applied(
        source, tmp_path, before, learn(20), learn(20), behind, {"op": "add_lora", "r": 4, "train_new_tokens": True}
    )
    tokenizer = AutoTokenizer.from_pretrained(output)
    learned = [token for token in report["new_tokens"] if token not in ("<|tool_call|>", "zqx", "<|end|>")]
    assert len(learned) == 40
    assert {token: tokenizer.get_vocab()[token] for token in report["new_tokens"]} == report["new_tokens"]
    assert sorted(report["new_tokens"].values()) == list(range(394, 437))
    config = json.loads((output / "adapter/adapter_config.json").read_text())
    assert {tuple(ids) for ids in config["trainable_token_indices"].values()} == {tuple(range(394, 437))}
    assert tokenizer.tokenize("a zqx <|end|>")[-1] == "<|end|>"
    assert [found["failures"] for found in report["tokenization"]] == [[]]


@pytest.mark.parametrize(("make", "left"), [(unigram, 0), (wordpiece, 3)], ids=["all", "all but three"])
def test_learned_pieces_get_other_names(make, left, bases, tmp_path):
    """They are added tokens then; their entries in the model's vocabulary go under the new names."""
    planned = graftkit.plan(recipe(bases[make], tmp_path / "planned", learn(10)))
    pieces = list(planned.vocabulary.new_tokens)[left:]
    names = {piece: f"<|piece {place}|>" for place, piece in enumerate(pieces)}
    output, report = applied(bases[make], tmp_path, learn(10), {"op": "rename_tokens", "names": names})
    assert [found["failures"] for found in report["tokenization"]] == [[]]
    assert {*names.values()} <= report["new_tokens"].keys()
    assert not {*pieces} & AutoTokenizer.from_pretrained(output).get_vocab().keys()
    assert graftkit.verify(bases[make], str(output), outputs=False).failures == ()


@pytest.mark.parametrize("make", [bpe, unigram, wordpiece], ids=lambda make: make.__name__)
def test_it_composes_with_a_vocabulary_that_is_trimmed_before_or_behind(make, bases, tmp_path):
    trim = {"op": "trim_vocab", "keep": {"texts": str(EXAMPLES)}}
    for name, operations in (("before", [trim, learn(20)]), ("behind", [learn(20), trim])):
        output, report = applied(bases[make], tmp_path / name, *operations)
        assert [found["failures"] for found in report["tokenization"]] == [[]]
        tokenizer = AutoTokenizer.from_pretrained(output)
        assert {token: tokenizer.get_vocab()[token] for token in report["new_tokens"]} == report["new_tokens"]
        seen = {index for text in texts() for index in tokenizer(text)["input_ids"]}
        assert len(seen & {*report["new_tokens"].values()}) > 10


def test_a_quantized_base_gets_rows_as_by_extend_vocab(sources, tmp_path):
    source = quantized(sources("llama"), tmp_path / "gptq", "gptq")
    output, report = applied(source, tmp_path, learn(20))
    assert list(report["new_tokens"].values()) == list(range(320, 340))
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 340


def test_it_goes_on_from_a_tokenizer_that_took_the_place_of_the_old_one(sources, tmp_path):
    donor = write_donor("wordpiece", tmp_path / "donor", tokens=300, topics=20)
    take = {"op": "transplant_tokenizer", "donor": str(donor), "init": "mean"}
    output, report = applied(sources("llama"), tmp_path, take, learn(20))
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert {token: tokenizer.get_vocab()[token] for token in report["new_tokens"]} == report["new_tokens"]
    assert len(report["new_tokens"]) == 20


def test_an_added_token_that_a_word_piece_vocabulary_would_read_inside_words_is_refused(bases, tmp_path):
    word = {"op": "extend_vocab", "tokens": [{"content": "zqx", "single_word": True}]}
    done, output = apply_by_command(bases[wordpiece], tmp_path, word, learn(20))
    assert done.returncode == 3
    assert "added_tokens: zqx: the model would read it inside words" in done.stderr
    assert not output.exists()
    applied(bases[wordpiece], tmp_path, learn(20), word)
    output, _ = applied(bases[wordpiece], tmp_path / "found", {"op": "extend_vocab", "tokens": ["zqx"]}, learn(20))
    assert AutoTokenizer.from_pretrained(output).tokenize("AZQXB")[1] == "zqx"


def test_the_files_of_slow_tokenizers_are_edited_where_they_say_the_same_and_named_where_they_cannot_be(
    bases, tmp_path
):
    for make, slow in ((bpe, ("vocab.json", "merges.txt")), (wordpiece, ("vocab.txt",))):
        source = tmp_path / make.__name__
        shutil.copytree(bases[make], source)
        model = json.loads((source / "tokenizer.json").read_text())["model"]
        texts_of(model, source, slow)
        (source / "tokenizer.model").write_bytes(b"stale")
        output, report = applied(source, tmp_path / f"of_{make.__name__}", learn(20))
        made = json.loads((output / "tokenizer.json").read_text())["model"]
        texts_of(made, tmp_path, slow)
        assert all(
            json.loads((output / name).read_text()) == json.loads((tmp_path / name).read_text())
            if name == "vocab.json"
            else (output / name).read_text() == (tmp_path / name).read_text()
            for name in slow
        )
        assert (output / "tokenizer.model").read_bytes() == b"stale"
        assert any(note.startswith("tokenizer.model: kept unchanged") for note in report["notes"])
        changed = {change["document"]: change["new"] for change in report["changes"]["values"]}
        assert {changed[name] for name in slow} == {"an edited file"}


def texts_of(model, folder, names):
    """Write the files of a slow tokenizer that hold what the model does."""
    lines = sorted(model["vocab"], key=model["vocab"].get)
    files = {
        "vocab.json": json.dumps(model["vocab"]),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model.get("merges", ())),
        "vocab.txt": "".join(f"{line}\n" for line in lines),
    }
    for name in names:
        (folder / name).write_text(files[name])


def test_slow_files_that_say_something_else_stay_and_are_named(bases, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(bases[bpe], source)
    (source / "merges.txt").write_text("#version: 0.2\na b\n")
    output, report = applied(source, tmp_path, learn(20))
    assert (output / "merges.txt").read_text() == "#version: 0.2\na b\n"
    assert any(note.startswith("merges.txt: kept unchanged") for note in report["notes"])


@pytest.mark.parametrize(
    ("lines", "fields", "wrong"),
    [
        ([], {}, r"\.texts: .*holds no text; two are needed"),
        (["one text"], {}, r"\.texts: .*holds one text; two are needed"),
        (["one text", "another"], {}, r"\.size: 1 text gives 0 pieces"),
        (
            ["a text of words"] * 30,
            {"size": 500},
            r"\.size: 27 texts give \d+ pieces with min_frequency: 2, not 500; give size: \d+ or less",
        ),
        (
            ["abcabc abc", "xyz"] * 5,
            {"size": 5, "min_frequency": 99},
            r"\.size: 9 texts give 0 pieces with min_frequency: 99, not 5; give more texts or a lower",
        ),
    ],
)
def test_too_few_texts_are_refused_with_what_there_is(lines, fields, wrong, bases, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"{line}\n" for line in lines))
    spec = {**learn(), **fields, "texts": str(tmp_path / "texts.txt")}
    with pytest.raises(RecipeError, match=wrong):
        graftkit.plan(
            {"version": 1, "base_model": str(bases[llama]), "operations": [spec], "output": str(tmp_path / "o")}
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 0), ("size", -3), ("min_frequency", 0), ("held_out", 0), ("held_out", 0.9), ("texts", "")],
)
def test_numbers_that_mean_nothing_are_refused_before_a_checkpoint_is_read(field, value, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps({
        "version": 1, "base_model": "nowhere", "operations": [{**learn(), field: value}], "output": str(tmp_path / "o"),
    }))  # fmt: skip
    assert_one_line(here("validate", tmp_path / "recipe.yaml"), 2, f"operations.0.{field}: ")


def test_a_model_of_another_type_and_a_slow_tokenizer_are_refused(tmp_path):
    build("llama", tmp_path / "words", rows=512)
    write({name: value for name, value in wordlevel().items() if name != "config.json"}, tmp_path / "words")
    done, _ = apply_by_command(tmp_path / "words", tmp_path / "one", learn())
    assert_one_line(done, 3, "tokenizer.json: model: is WordLevel; pieces are learned for BPE, WordPiece, Unigram")
    (tmp_path / "words/tokenizer.json").unlink()
    (tmp_path / "words/vocab.txt").write_text("a\n")
    done, _ = apply_by_command(tmp_path / "words", tmp_path / "two", learn())
    assert_one_line(done, 3, "tokenizer.json: not found, only vocab.txt")


def test_more_texts_than_are_read_are_refused(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "MOST", 1000)
    with pytest.raises(RecipeError, match=r"operations.0.texts: .*docstrings.jsonl: holds more than 1,000 characters"):
        graftkit.plan(
            {"version": 1, "base_model": str(bases[bpe]), "operations": [learn()], "output": str(tmp_path / "o")}
        )
