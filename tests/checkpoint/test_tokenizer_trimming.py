"""Text that was split into kept tokens alone is split into the same ones, by every kind of model and whatever else goes."""

import json
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_sources import TEXT, bpe, llama, unigram, wordlevel, wordpiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.token_ids import renumbered
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.checkpoint.tokenizer.closure import closed
from graftkit.checkpoint.tokenizer.files import backend_of


def _trained(model, trainer, **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(TEXT, trainer)
    return {"tokenizer.json": json.loads(tokenizer.to_str())}


def word_ends():
    """As GPT-1 and CLIP have it: what ends a word is spelled otherwise."""
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    return _trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainer, pre_tokenizer=pre_tokenizers.Whitespace()
    )


def word_parts():
    """BPE whose pieces inside a word have a mark before them."""
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>"], continuing_subword_prefix="##", show_progress=False
    )
    return _trained(
        models.BPE(unk_token="<unk>", continuing_subword_prefix="##"), trainer,
        pre_tokenizer=pre_tokenizers.Whitespace(),
    )  # fmt: skip


def every_split():
    """As conversions of tiktoken and SentencePiece files have it: a merge for every way to cut a piece, and words read whole."""
    document = json.loads(json.dumps(bpe()["tokenizer.json"]))
    vocab = document["model"]["vocab"]
    ranks = sorted(vocab.items(), key=lambda item: item[1])
    document["model"]["merges"] = [
        [piece[:cut], piece[cut:]]
        for piece, _ in ranks
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    document["model"]["ignore_merges"] = True
    return {"tokenizer.json": document}


def unlikely_letters():
    """Unigram in which an unknown letter would cost less than a known one, where the least likely piece went."""
    scores = [("<unk>", 0.0), ("x", -100.0), ("xy", -50.0), ("z", -40.0), ("yz", -1.0), ("y", -45.0)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    tokenizer.decoder = decoders.Fuse()
    return {"tokenizer.json": json.loads(tokenizer.to_str())}


MAKERS = {
    make.__name__: make
    for make in (bpe, llama, unigram, wordpiece, wordlevel, word_ends, word_parts, every_split, unlikely_letters)
}
#: What gives up on a word as a whole may, without the piece that led it astray, know how to spell it.
KNOWS_MORE = {"wordpiece"}


@cache
def files_of(name):
    return read_tokenizer({"tokenizer.json": MAKERS[name]()["tokenizer.json"]})


@cache
def trimmed_by(name, seed, share):
    """The old tokenizer, one without most of its tokens, and the new id of each of the others."""
    files = files_of(name)
    chance = random.Random(seed)
    wanted = {index for index in files.tokens if chance.random() < share} | {entry.index for entry in files.added}
    ids = IndexMap.of_kept(files.size, sorted(closed(files, wanted)))
    document = renumbered({"tokenizer.json": dict(files.document)}, ids)
    return (
        files,
        backend_of(document.get("tokenizer.json", files.document)),
        dict(zip(ids.kept, ids.places, strict=True)),
    )


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_of_kept_tokens_is_split_into_the_same(name, data):
    seed, share = data.draw(st.integers(0, 2)), data.draw(st.sampled_from([0.05, 0.3, 0.8]))
    files, new, places = trimmed_by(name, seed, share)
    kept = [files.tokens[index] for index in places]
    pieces = st.sampled_from(sorted(kept)).map(
        lambda piece: files._backend.decode([files.ids[piece]], skip_special_tokens=False)
    )
    text = "".join(data.draw(st.lists(pieces | st.text(max_size=3), max_size=12)))
    old = files.encode(text)
    now = new.encode(text, add_special_tokens=False).ids
    unknown = files.ids.get(files.document["model"].get("unk_token"))
    if set(old) <= places.keys() and not (name in KNOWS_MORE and unknown in old):
        assert now == [places[index] for index in old]
    assert set(now) <= set(places.values())


def test_a_piece_keeps_what_it_is_merged_from():
    files = files_of("every_split")
    wanted = [index for token, index in files.ids.items() if len(token) > 5][:8]
    ids = closed(files, wanted)
    assert {*wanted} < ids
    parts = closed(files, ())
    assert len(ids) - len(parts) < sum(
        len(files.tokens[index]) for index in wanted
    )  # the way that is taken, not every way


def test_an_unknown_letter_costs_what_it_did():
    files = files_of("unlikely_letters")
    kept = closed(files, [files.ids[piece] for piece in ("xy", "yz", "z", "y")])
    assert files.encode("xyz") == [files.ids["xy"], files.ids["z"]]
    assert files.ids["x"] in kept


def test_what_every_text_begins_as_stays():
    files = files_of("llama")
    ids = {files.tokens[index] for index in closed(files, ())}
    assert {f"<0x{byte:02X}>" for byte in range(256)} < ids
    assert {"<unk>", "a", "▁"} < ids
    assert len({files_of("bpe").tokens[index] for index in closed(files_of("bpe"), ())}) >= 256
