"""trim_vocab: the same model of fewer tokens, over each kind of tokenizer, under new ids wherever one stands."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.command import here
from support.recipes import applied, apply_by_command, load, recipe
from support.renamed import NAMES, checkpoint
from support.tokenizer_sources import bpe, llama

import graftkit
from graftkit.architecture.index_map import IndexMap
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.errors import InputRejected, RecipeError, VerificationFailed
from graftkit.operations.vocabulary.kept import kept_ids
from graftkit.recipe.trim_vocab import KeptTokens

TEXTS = (
    "the cat sat on the mat",
    "a category of tools",
    "def mean(xs): return sum(xs)",
    "Der Müller 3.14 昨天",
    "it says: the tool",
)


def generation(size):
    """Ids of tokens that go and of such that stay, for a tokenizer of ``size`` tokens."""
    ids = [size - 1 - step for step in range(0, size // 2, 3)]
    return {
        "suppress_tokens": [5, *ids],
        "begin_suppress_tokens": ids[:4],
        "bad_words_ids": [ids[:2], [7], [ids[3]], [ids[5]]],
    }


def trim(texts=None, **fields):
    keep = {key: fields.pop(key) for key in ("tokens", "min_count", "special") if key in fields}
    return {"op": "trim_vocab", "keep": {**({"texts": str(texts)} if texts else {}), **keep}, **fields}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS * 4) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base for each kind of tokenizer, with ids in its generation config that name tokens of all kinds."""
    found = {}
    for make in NAMES:
        folder = checkpoint(make, tmp_path_factory.mktemp(make.__name__) / "base")
        path = folder / "generation_config.json"
        size = len(plain(folder))
        path.write_text(json.dumps({**json.loads(path.read_text()), **generation(size)}))
        found[make] = folder
    return found


def kept_of(report):
    ids = report["correspondence"]["ids"]
    found = IndexMap(ids["source"], ids["result"], tuple(map(tuple, ids["runs"])))
    return list(found.kept)


def plain(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_what_stays_is_what_it_was_over_each_kind_of_tokenizer(make, bases, texts, tmp_path):
    source = bases[make]
    output, report = applied(source, tmp_path, trim(texts))
    kept = kept_of(report)
    places = {index: place for place, index in enumerate(kept)}
    before, after = load_file(source / "model.safetensors"), load_file(output / "model.safetensors")
    for name, old in before.items():
        assert torch.equal(old[kept] if len(old) == 512 else old, after[name]), name
    assert json.loads((output / "config.json").read_text())["vocab_size"] == len(kept) < 512

    old, new = plain(source), plain(output)
    assert {token: places[index] for token, index in old.get_vocab().items() if index in places} == new.get_vocab()
    for text in TEXTS:
        for framed in (True, False):
            ids = old(text, add_special_tokens=framed)["input_ids"]
            assert new(text, add_special_tokens=framed)["input_ids"] == [places[index] for index in ids]
        assert new.decode(new(text)["input_ids"]) == old.decode(old(text)["input_ids"])
    assert report["checks"]["trimmed texts"]["changed"] == 0

    (one, _), (other, info) = load(source), load(output)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor([old(TEXTS[0])["input_ids"]])
    logits = one(ids).logits[..., kept]
    mine = other(torch.tensor([new(TEXTS[0])["input_ids"]])).logits
    assert torch.allclose(logits, mine, atol=1e-6)
    mass = 1 - one(ids).logits.double().softmax(-1)[..., kept].sum(-1)
    assert report["checks"]["trimmed texts"]["removed"]["mass_max"] >= float(mass.max()) - 1e-12
    assert report["promise"]["strength"] == "bitwise"
    hidden = [item for item in report["outputs"]["comparisons"] if "hidden" in item["name"]]
    assert hidden
    assert all(item["bitwise"] for item in hidden)


@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_every_document_names_the_same_tokens(make, bases, texts, tmp_path):
    """Ids are looked up by their tokens, so that no list of places is asked."""
    source = bases[make]
    output, report = applied(source, tmp_path, trim(texts))
    kept = kept_of(report)
    old, new = plain(source), plain(output)
    name = {index: token for token, index in old.get_vocab().items()}

    def tokens(value, names):
        if isinstance(value, list):
            return [tokens(item, names) for item in value]
        return names.get(value) if isinstance(value, int) else value

    names = {index: token for token, index in new.get_vocab().items()}
    for document in ("config.json", "generation_config.json"):
        before, after = (json.loads((folder / document).read_text()) for folder in (source, output))
        for key in (key for key in before if key.endswith("_token_id")):
            assert tokens(before[key], name) == tokens(after[key], names), key
    made, given = (json.loads((folder / "generation_config.json").read_text()) for folder in (output, source))
    assert made["suppress_tokens"] != given["suppress_tokens"]
    for key in ("suppress_tokens", "begin_suppress_tokens"):
        assert tokens(made[key], names) == [name[index] for index in given[key] if index in kept]
    sequences = [words for words in given["bad_words_ids"] if set(words) <= set(kept)]
    assert tokens(made["bad_words_ids"], names) == tokens(sequences, name)
    tokenizer = json.loads((output / "tokenizer.json").read_text())
    assert all(names[entry["id"]] == entry["content"] for entry in tokenizer["added_tokens"])
    for token, value in tokenizer["post_processor"].get("special_tokens", {}).items():
        assert [names[index] for index in value["ids"]] == value["tokens"] == [token]


def test_the_recipe_shows_what_went_and_verify_accepts_it(tmp_path):
    done = here("apply", "recipes/trim_vocab.yaml", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for words in (
        "rows dropped",
        "tokens stay:",
        "removed mass",
        "-log(1 - removed mass)",
        "texts held out",
        "given texts",
    ):
        assert words in done.stdout
    found = graftkit.verify("recipes/models/demo-lm", str(tmp_path / "out"))
    assert found.failures == ()
    assert "old ids" in found.tokenization.figure()
    assert {finding.name for finding in found.findings} == {"report", "bytes", "config", "tokenizer", "outputs"}


def test_rows_that_fill_the_table_up_are_means_and_keep_their_bound(bases, texts, tmp_path):
    report = graftkit.apply(recipe(bases[bpe], tmp_path / "out", trim(texts, pad_to_multiple_of=64)))
    ids = report.plan.correspondence.ids
    assert ids.result % 64 == 0
    count, fresh = len(ids.kept), len(ids.fresh)
    bound = report.outputs.distribution
    assert bound.bound == pytest.approx(torch.log1p(torch.tensor(fresh / count)).item(), rel=0.01)
    assert bound.kl_max <= bound.bound


def test_rare_tokens_go_where_a_count_is_asked_and_what_that_does_is_measured(bases, tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = ["the cat sat"] * 20 + ["the category of tools"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    report = graftkit.apply(recipe(bases[llama], tmp_path / "out", trim(path, min_count=2)))
    found = next(finding for finding in report.findings if finding.name == "trimmed texts")
    assert (found.texts, found.changed, found.unknown) == (21, 1, (0, 0))
    assert found.held_out.texts == 2
    assert found.removed.positions > 21
    kl = -torch.log1p(-torch.tensor(found.removed.mass_max, dtype=torch.float64))
    assert found.removed.kl_max == pytest.approx(float(kl))


def test_texts_that_are_held_out_take_away_nothing_that_stays_for_another_reason(bases, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(["the cat"] * 9 + ["</s> a category"]) + "\n")
    source = Checkpoint.open(str(bases[bpe]))
    tokenizer = read_tokenizer(source.documents)
    kept = kept_ids(KeptTokens(texts=str(path)), source, tokenizer, 512)
    assert tokenizer.ids["</s>"] in kept.others < set(kept.ids)


def test_added_tokens_that_nobody_uses_go_where_that_is_asked(bases, texts, tmp_path):
    output, report = applied(bases[bpe], tmp_path, trim(texts, special="used"))
    tokenizer = plain(output)
    assert "<|old|>" not in tokenizer.get_vocab()
    assert tokenizer.all_special_tokens == ["<s>", "</s>"]
    assert "<|old|>" not in (output / "tokenizer_config.json").read_text()
    assert len(kept_of(report)) == len(tokenizer)


def test_slow_files_which_have_the_old_ids_do_not_come_along(bases, texts, tmp_path):
    import shutil

    source = tmp_path / "base"
    shutil.copytree(bases[bpe], source)
    (source / "merges.txt").write_text("#version: 0.2\n")
    output, report = applied(source, tmp_path, trim(texts))
    assert not (output / "merges.txt").exists()
    assert any("merges.txt: left out" in note for note in report["notes"])


REFUSED = {
    "nothing": ({"tokens": []}, RecipeError, r"operations\.0\.keep: keeps no token"),
    "a token that is not there": ({"tokens": ["tool", "toool"]}, RecipeError, r"operations\.0\.keep\.tokens\.1: the tokenizer has no"),
    "twice": ({"tokens": ["tool", "tool"]}, RecipeError, r"keep\.tokens\.1: the token 'tool' is given a second time"),
    "a count of nothing": ({"tokens": ["tool"], "min_count": 2}, RecipeError, r"keep\.min_count: has no effect without texts"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_kept_is_said_with_its_place(case, bases, tmp_path):
    fields, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        graftkit.plan(recipe(bases[bpe], tmp_path / "out", trim(**fields)))


def test_texts_that_need_every_token_leave_nothing_to_trim(bases, tmp_path):
    path = tmp_path / "texts.txt"
    tokenizer = plain(bases[llama])
    path.write_text("\n".join(tokenizer.decode([index]) or "x" for index in range(len(tokenizer))))
    with pytest.raises(
        RecipeError, match=r"operations\.0\.keep: leaves nothing to trim: each of the tokenizer's 499 tokens"
    ):
        every = [token for token in tokenizer.get_vocab() if token.strip()]
        graftkit.plan(recipe(bases[llama], tmp_path / "out", trim(tokens=every)))
    path.write_text("\n\n")
    with pytest.raises(RecipeError, match=r"operations\.0\.keep\.texts: .*holds no text"):
        graftkit.plan(recipe(bases[llama], tmp_path / "out", trim(path)))


def test_what_a_chat_template_writes_is_not_dropped_unsaid(bases, texts, tmp_path):
    import shutil

    source = tmp_path / "base"
    shutil.copytree(bases[bpe], source)
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '<s>' + m['content'] }}the toolbox{% endfor %}"
    )
    with pytest.raises(
        RecipeError,
        match=r"the token 'Ġtoolbox' would go, and the chat template writes 'the toolbox' with it; tokens: \['Ġtoolbox'\]",
    ) as caught:
        graftkit.plan(recipe(source, tmp_path / "out", trim(texts)))
    assert "content" not in str(caught.value)
    output, _ = applied(source, tmp_path, trim(texts, tokens=["Ġtoolbox"]))
    assert plain(output)("the toolbox")["input_ids"]


def test_a_token_that_a_processor_names_is_not_dropped_unsaid(bases, texts, tmp_path):
    import shutil

    source = tmp_path / "base"
    shutil.copytree(bases[bpe], source)
    (source / "processor_config.json").write_text(json.dumps({"image_token": "Ġtoolbox"}))
    with pytest.raises(
        RecipeError, match=r"the token 'Ġtoolbox' would go, and processor_config\.json: image_token names it"
    ):
        graftkit.plan(recipe(source, tmp_path / "out", trim(texts)))


def test_an_id_that_a_config_names_stays(bases, texts, tmp_path):
    import shutil

    source = tmp_path / "base"
    shutil.copytree(bases[bpe], source)
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_token_index": 390}))
    output, report = applied(source, tmp_path, trim(texts))
    assert kept_of(report)[json.loads((output / "config.json").read_text())["image_token_index"]] == 390


def test_positions_that_are_counted_from_the_pad_id_keep_it(bases, texts, tmp_path):
    """A RoBERTa whose pad token comes behind some that nobody needs."""
    import shutil

    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.RobertaConfig(**sizes, vocab_size=512, max_position_embeddings=600, pad_token_id=390)
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bases[bpe] / name, tmp_path / "base" / name)
    with pytest.raises(InputRejected, match=r"embeddings counts positions from the pad token's id, which would become"):
        graftkit.plan(recipe(tmp_path / "base", tmp_path / "out", trim(texts)))


def test_a_pad_id_moves_where_tables_alone_know_it(bases, texts, tmp_path):
    """BART's encoder and decoder have tables of their own in memory, tied to the one that is stored; positions are not counted from it."""
    import shutil

    import transformers

    sides = {f"{side}_{key}": value for side in ("encoder", "decoder")
             for key, value in (("layers", 1), ("ffn_dim", 64), ("attention_heads", 4))}  # fmt: skip
    config = transformers.BartConfig(vocab_size=512, d_model=32, max_position_embeddings=600, pad_token_id=390, **sides)
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bases[bpe] / name, tmp_path / "base" / name)
    planned = graftkit.plan(recipe(tmp_path / "base", tmp_path / "out", trim(texts)))
    assert planned.result.config["pad_token_id"] < 390


def test_a_table_of_another_size_that_ids_index_is_refused(tmp_path):
    """Gemma 3n has rows for each layer, for fewer tokens than its vocabulary has; whose they are is known by the ids alone."""
    from support.tiny import build

    build("Gemma3nForCausalLM", tmp_path / "base")
    keep = {"op": "trim_vocab", "keep": {"tokens": ["ea"]}}
    with pytest.raises(
        InputRejected, match=r"token ids index '?model\.embed_tokens_per_layer\.weight'? too, of \d+ rows"
    ):
        graftkit.plan(recipe(tmp_path / "base", tmp_path / "out", keep))


def test_a_slow_tokenizer_and_a_tokenizer_without_rows_are_refused(bases, sources, tmp_path):
    import shutil

    source = tmp_path / "base"
    shutil.copytree(sources("llama"), source)
    (source / "tokenizer.json").rename(source / "vocab.json")
    with pytest.raises(InputRejected, match=r"tokenizer\.json: not found, only vocab\.json"):
        graftkit.plan(recipe(source, tmp_path / "out", trim(tokens=["et"])))


FAULTS = {
    "a merge left out": (lambda made: made["tokenizer.json"]["model"]["merges"].pop(3), "model is not the source's"),
    "an id of generation_config that stays": (
        lambda made: made["generation_config.json"].update(suppress_tokens=generation(394)["suppress_tokens"]),
        "generation_config.json: suppress_tokens: ",
    ),
    "an id of a role that stays": (lambda made: made["generation_config.json"].update(eos_token_id=2), "eos_token_id"),
    "a stale id of the post-processor": (
        lambda made: made["tokenizer.json"]["post_processor"]["special_tokens"]["</s>"].update(ids=[7]),
        "a text was framed by ['<s>', '</s>']",
    ),
    "a stale id of an added token": (
        lambda made: made["tokenizer.json"]["added_tokens"][-1].update(id=393), "'<|old|>'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_document_writes_nothing(fault, bases, texts, tmp_path, monkeypatch):
    operation = sys.modules["graftkit.operations.trim_vocab"]

    plant, words = FAULTS[fault]
    right = operation.renumbered

    def wrong(documents, ids):
        made = json.loads(json.dumps(right(documents, ids)))
        plant(made)
        return made

    monkeypatch.setattr(operation, "renumbered", wrong)
    done, output = apply_by_command(bases[bpe], tmp_path, trim(texts))
    assert done.returncode == 4, done.stderr
    assert words in done.stderr
    assert not output.exists()


def test_a_row_that_is_shifted_by_one_writes_nothing(bases, texts, tmp_path, monkeypatch):
    operation = sys.modules["graftkit.operations.trim_vocab"]

    right = operation.pick_rows
    shifted = lambda base, *, axis, rows: right(base, axis=axis, rows=[*rows[1:], rows[0]])  # noqa: E731 - said once
    monkeypatch.setattr(operation, "pick_rows", shifted)
    done, output = apply_by_command(bases[bpe], tmp_path, trim(texts))
    assert done.returncode == 4, done.stderr
    assert "outputs: hidden_states.0" in done.stderr
    assert not output.exists()


def test_a_piece_without_its_parts_writes_nothing(bases, texts, tmp_path, monkeypatch):
    from graftkit.checkpoint.tokenizer import closure

    monkeypatch.setattr(closure.Merging, "parts", lambda self, pieces: set(pieces))
    done, output = apply_by_command(bases[bpe], tmp_path, trim(texts))
    assert done.returncode == 4, done.stderr
    assert "old text splits in another way, and no new token explains it" in done.stderr
    assert not output.exists()


def test_given_texts_that_fall_apart_are_a_failure(bases, texts, tmp_path, monkeypatch):
    """The same fault, where the check of tokenizers were blind."""
    from graftkit.checkpoint.tokenizer import closure
    from graftkit.verification.tokens import tokenization

    monkeypatch.setattr(closure.Merging, "parts", lambda self, pieces: set(pieces))
    monkeypatch.setattr(tokenization, "_compare", lambda *_: tokenization.TokenizationReport((), (), {}, ()))
    with pytest.raises(VerificationFailed, match="texts: a text of kept tokens alone is split otherwise"):
        graftkit.apply(recipe(bases[bpe], tmp_path / "out", trim(texts)))
