"""What tokens spell, which of two tokenizers' are the same, and how the text of one is split by the other."""

import itertools

import pytest
from support import tokenizer_sources as sources

from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.checkpoint.tokenizer.segmentation import Segmentation
from graftkit.checkpoint.tokenizer.shared import shared_tokens
from graftkit.checkpoint.tokenizer.spelling import Spelling

KINDS = {source.__name__: source for source in sources.SOURCES}


@pytest.fixture(scope="module")
def spellings():
    return {name: Spelling(read_tokenizer(source())) for name, source in KINDS.items()}


def named(spelling):
    return {spelling.files.tokens[index]: text for index, text in spelling.texts.items()}


@pytest.mark.parametrize(
    ("kind", "token", "spelled"),
    [
        ("bpe", "Ġlazy", b" lazy"),
        ("bpe", "§", b"\xa7"),  # the letter of a byte, not the character
        ("bpe", "Ċ", b"\n"),
        ("llama", "▁over", b" over"),
        ("llama", "umps", b"umps"),
        ("llama", "<0x0A>", b"\n"),
        ("unigram", "▁cat", b" cat"),
        ("unigram", "ate", b"ate"),
        ("wordpiece", "archive", b" archive"),
        ("wordpiece", "##ated", b"ated"),
        ("wordpiece", ",", b","),  # as its decoder writes it behind a word
        ("wordlevel", "tools", b" tools"),
    ],
)
def test_a_token_spells_what_stands_in_text(spellings, kind, token, spelled):
    assert named(spellings[kind])[token] == spelled


@pytest.mark.parametrize("kind", ["bpe", "bpe_legacy", "llama", "unigram"])
def test_the_bytes_of_a_texts_tokens_are_the_text(spellings, kind):
    """But for the space that SentencePiece puts before a text."""
    files = spellings[kind].files
    for text in ("the cat sat", "cats, tools", "a category of cat"):
        assert b"".join(spellings[kind].texts[i] for i in files.encode(text)).decode().lstrip() == text


def test_special_tokens_spell_nothing(spellings):
    for spelling in spellings.values():
        contents = {spelling.files.tokens[index] for index in spelling.special}
        assert contents >= {*spelling.files.special.values()} & {*spelling.files.ids}
        assert not contents & named(spelling).keys()


@pytest.mark.parametrize(("base", "donor"), [*itertools.permutations(KINDS, 2)])
def test_shared_tokens_spell_the_same_or_play_the_same_role(spellings, base, donor):
    mine, theirs = spellings[base], spellings[donor]
    found = shared_tokens(mine, theirs)
    for index, origin in found.origins.items():
        if index in found.by_role:
            role = found.by_role[index]
            assert (mine.files.tokens[origin], theirs.files.tokens[index]) == (
                mine.files.special[role],
                theirs.files.special[role],
            )
        elif index in theirs.special:
            assert mine.files.tokens[origin] == theirs.files.tokens[index]
        else:
            assert mine.texts[origin] == theirs.texts[index]
    texts = {*mine.texts.values()}
    left = [index for index, text in theirs.texts.items() if text in texts and index not in found.origins]
    assert {*left} <= theirs.unused
    places = found.places
    assert len({*places.values()}) == len(places)
    assert {found.origins[index] for index in places.values()} == {*found.origins.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_shares_every_token_with_itself(spellings, kind):
    found = shared_tokens(spellings[kind], spellings[kind])
    known = {*spellings[kind].texts, *spellings[kind].special}
    assert {index: origin for index, origin in found.origins.items() if index not in found.by_role} == {
        index: index for index in known - found.by_role.keys()
    }


def test_a_stand_in_for_a_byte_that_a_token_spells_is_shared_with_a_stand_in_alone(spellings):
    letters, pieces = spellings["bpe"], spellings["llama"]
    found = shared_tokens(letters, pieces).origins
    ids = pieces.files.ids
    assert ids["<0x65>"] not in found  # "e" is a token of both
    assert letters.files.tokens[found[ids["e"]]] == "e"
    assert letters.files.tokens[found[ids["<0xC3>"]]] == "Ã"  # half a letter, which no other piece spells
    assert shared_tokens(pieces, pieces).origins[ids["<0x65>"]] == ids["<0x65>"]


@pytest.mark.parametrize(("base", "donor"), [*itertools.permutations(["bpe", "llama", "unigram"], 2)])
def test_the_text_of_a_token_is_split_into_tokens_that_spell_it(spellings, base, donor):
    """In the middle of a text, so that no space comes before ``ate``; what the base cannot spell is left out."""
    mine, theirs = spellings[base], spellings[donor]
    segmentation = Segmentation(mine)
    exact, others = [], []
    for spelled in theirs.texts.values():
        pieces = segmentation.pieces(spelled)
        (exact if b"".join(mine.texts[piece] for piece in pieces) == spelled else others).append(spelled)
    if base != "unigram":
        assert not others
    assert exact


def test_what_a_tokenizer_has_no_token_for_has_no_pieces(spellings):
    assert Segmentation(spellings["unigram"]).pieces(b"\xe6\x98") == ()
    assert Segmentation(spellings["wordlevel"]).pieces(b" zebra") == ()
