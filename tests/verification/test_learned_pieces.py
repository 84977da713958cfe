"""The check of learned pieces: it passes what is right over each kind of tokenizer, and each planted fault is caught."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_sources import TEXT, bpe, bpe_legacy, llama, unigram, wordpiece, write

from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.checkpoint.tokenizer.learning import learn_pieces
from graftkit.checkpoint.tokenizer.piece_files import add_pieces
from graftkit.checkpoint.tokenizer.words import count_words
from graftkit.errors import InputRejected
from graftkit.verification.subject import NewTokens
from graftkit.verification.tokens.tokenization import check_tokenization

KINDS = (bpe, bpe_legacy, wordpiece, unigram, llama)
TEXTS = (
    *TEXT,
    "concatenated categories of preprints; the archive says that tools are toolboxes, catalogued every morning",
) * 2


def learned(documents, size=7, texts=TEXTS):
    """The pieces of a tokenizer's documents, and the documents with them."""
    tokenizer = read_tokenizer(documents)
    found = learn_pieces(tokenizer, count_words(tokenizer, texts), size, 2)
    changed, ids, _ = add_pieces(documents, {}, found.pieces)
    return found.pieces, ids, documents | changed


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def grown(request):
    documents = request.param()
    return request.param, documents, *learned(documents)


def check(documents, result, ids, folder, **options):
    tokens = NewTokens({}, frozenset(), chat_template_changed=False, learned=ids)
    return check_tokenization(write(documents, folder / "source"), write(result, folder / "result"), tokens, **options)


def test_every_kind_of_tokenizer_passes(grown, tmp_path):
    _, documents, pieces, ids, result = grown
    report = check(documents, result, ids, tmp_path)
    assert report.failures == ()
    assert report.covered["learned_pieces"] == len(pieces.listed) == 7
    assert report.covered["texts_split_differently"] >= 7
    assert {difference.token for difference in report.differences} <= {*ids}


def edited(result, change):
    """The documents with the model of tokenizer.json changed in place by ``change``."""
    document = copy.deepcopy(result["tokenizer.json"])
    change(document["model"])
    return result | {"tokenizer.json": document}


def test_a_merge_that_is_left_out_is_caught(tmp_path):
    documents = bpe()
    _, ids, result = learned(documents)
    report = check(documents, edited(result, lambda model: model["merges"].pop()), ids, tmp_path)
    assert any("never read" in failure for failure in report.failures)


def test_a_merge_before_the_old_ones_is_caught(tmp_path):
    documents = bpe()
    pieces, ids, result = learned(documents)
    early = edited(result, lambda model: model["merges"].insert(0, model["merges"].pop(-len(pieces.merges))))
    report = check(documents, early, ids, tmp_path)
    assert any("the source's come first no longer: at 0" in failure for failure in report.failures)
    assert any("split at other places" in failure for failure in report.failures)


def test_a_merge_that_makes_no_new_piece_is_caught(tmp_path):
    documents = bpe()
    _, ids, result = learned(documents)
    model = documents["tokenizer.json"]["model"]
    ways = ([token[:cut], token[cut:]] for token in model["vocab"] for cut in range(1, len(token)))
    other = next(way for way in ways if {*way} <= model["vocab"].keys() and way not in model["merges"])
    report = check(documents, edited(result, lambda model: model["merges"].append(other)), ids, tmp_path)
    assert any(f"new ones make {''.join(other)}, no new piece" in failure for failure in report.failures)


def test_an_id_that_is_not_contiguous_is_caught(grown, tmp_path):
    make, documents, pieces, ids, result = grown
    if make is unigram:
        moved = edited(result, lambda model: model["vocab"].insert(-1, ["zzz", -50.0]))
    else:
        last = pieces.listed[-1].content
        moved = edited(result, lambda model: model["vocab"].update({last: model["vocab"][last] + 1}))
    report = check(documents, moved, ids, tmp_path)
    assert any("should have id" in failure for failure in report.failures)


def test_an_old_piece_that_is_another_is_caught(grown, tmp_path):
    make, documents, _, ids, result = grown
    if make is unigram:
        other = edited(result, lambda model: model["vocab"].__setitem__(5, ["zzz", model["vocab"][5][1]]))
    else:
        one, two = list(documents["tokenizer.json"]["model"]["vocab"])[-2:]
        other = edited(
            result, lambda model: model["vocab"].update({one: model["vocab"][two], two: model["vocab"][one]})
        )
    report = check(documents, other, ids, tmp_path)
    assert any(
        "model.vocab is not the source's with the new pieces behind it" in failure for failure in report.failures
    )


@pytest.mark.parametrize("place", ["old", "new"])
def test_a_score_that_is_another_is_caught(place, tmp_path):
    documents = unigram()
    pieces, ids, result = learned(documents)
    old = len(documents["tokenizer.json"]["model"]["vocab"])

    def louder(model):
        for index in range(3, old) if place == "old" else ids.values():
            model["vocab"][index][1] += 40.0 if place == "new" else index / 10

    report = check(documents, edited(result, louder), ids, tmp_path, probes=TEXT)
    wrong = "the scores are not the source's" if place == "old" else "split at other places"
    assert any(wrong in failure for failure in report.failures)


def test_a_score_so_low_that_the_piece_never_wins_is_caught(tmp_path):
    documents = unigram()
    _, ids, result = learned(documents)
    low = edited(result, lambda model: model["vocab"][-1].__setitem__(1, -1000.0))
    assert any("1 new piece never read" in failure for failure in check(documents, low, ids, tmp_path).failures)


def small_wordpiece(*pieces):
    documents = wordpiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: index for index, token in enumerate([*special, *pieces])}
    document = documents["tokenizer.json"]
    return documents | {"tokenizer.json": {**document, "model": {**document["model"], "vocab": vocab}}}


def test_a_text_that_becomes_unknown_is_caught_and_the_learning_refuses_what_could_make_it(tmp_path):
    documents = small_wordpiece("a", "##b", "##bc")
    result = small_wordpiece("a", "##b", "##bc", "ab")
    report = check(documents, result, {"ab": 8}, tmp_path, probes=("ab", "abc"))
    assert any("'abc' has unknown characters that it did not have" in failure for failure in report.failures)
    with pytest.raises(InputRejected, match="1 character of its pieces has no piece of their own: ##c"):
        learned(documents, 1, ["ab ab abc"])


@pytest.fixture(scope="module")
def tokenizers(grown):
    make, documents, pieces, ids, result = grown
    before, after = read_tokenizer(documents), read_tokenizer(result)
    return make, before, after, {ids[piece.content]: piece.parts for piece in pieces.listed}


WORDS = st.sampled_from([word for text in TEXTS for word in text.split()])
ANY = st.lists(
    st.one_of(WORDS, st.text(max_size=12), st.sampled_from(["<s>", "</s>", "<|old|>", "[SEP]", "<extra_id_0>"])),
    max_size=8,
)


@given(words=ANY, gap=st.sampled_from([" ", "", "\n", "  "]))
@settings(max_examples=150, deadline=None)
def test_any_text_splits_as_before_where_no_new_piece_is_and_decodes_as_before(tokenizers, words, gap):
    make, before, after, parts = tokenizers
    text = gap.join(words)
    old, now = before.encode(text), after.encode(text)
    if parts.keys().isdisjoint(now):
        assert now == old
    if make is not wordpiece:
        assert [part for index in now for part in parts.get(index, (index,))] == old
    assert after.decode(now) == before.decode(old)


def test_pieces_come_from_within_words_and_never_from_special_tokens_or_bytes():
    texts = ["the cat</s>the cat</s>", "<|old|>the cat<|old|>the cat", "昨天 昨天 昨天"] * 20
    for make in (bpe, unigram, llama, wordpiece):
        documents = make()
        tokenizer = read_tokenizer(documents)
        added = {entry.index for entry in tokenizer.added}
        for piece in learned(documents, 3, [*texts, *TEXT])[0].listed:
            assert added.isdisjoint(piece.parts)
            assert "<0x" not in piece.content
            assert "▁" not in piece.content[1:] or make is unigram
            assert "Ġ" not in piece.content[1:]


def test_the_trainer_gives_the_same_pieces_whatever_the_order_of_the_texts():
    documents = unigram()
    assert json.dumps(learned(documents)[2]) == json.dumps(learned(documents, texts=TEXTS[::-1])[2])


def test_pieces_of_a_part_of_a_character_pass_too(tmp_path):
    texts = ["北京大学的图书馆", "北京图书馆在哪里", "大学图书馆", "北方大学"] * 3
    documents = bpe()
    pieces, ids, result = learned(documents, 20, texts)
    backend = read_tokenizer(result)
    assert any("\ufffd" in backend.decode([index]) for index in ids.values())
    assert check(documents, result, ids, tmp_path, probes=texts).failures == ()
    assert len(backend.encode(texts[0])) < len(read_tokenizer(documents).encode(texts[0])) / 2
    assert backend.decode(backend.encode(texts[0])) == texts[0]
    assert len(pieces.merges) == 20


def test_a_special_token_that_only_the_normalizer_makes_is_named():
    documents = unigram()
    document = documents["tokenizer.json"] | {"normalizer": {"type": "NFKC"}}
    tokenizer = read_tokenizer(documents | {"tokenizer.json": document})
    found = learn_pieces(tokenizer, count_words(tokenizer, TEXTS), 7, 2)
    assert add_pieces(documents, {}, found.pieces)[2] == ()
    notes = add_pieces(documents | {"tokenizer.json": document}, {}, found.pieces)[2]
    assert notes == (
        "<extra_id_0>: in the model's vocabulary now, and read where the normalizer makes it of other text",
    )


def test_a_model_that_looks_whole_words_up_first_reads_the_same(tmp_path):
    documents = bpe()
    document = documents["tokenizer.json"]
    documents |= {"tokenizer.json": {**document, "model": {**document["model"], "ignore_merges": True}}}
    _, ids, result = learned(documents)
    assert check(documents, result, ids, tmp_path, probes=TEXTS).failures == ()
