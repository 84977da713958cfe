"""Reading tokenizer files, and what cannot be added to them."""

import copy
import json

import pytest
from support.tokenizer_sources import SOURCES, bpe, bpe_legacy, llama, unigram, wordlevel, wordpiece

from graftkit.checkpoint.tokenizer import NewToken, add_tokens, read_tokenizer
from graftkit.errors import InputRejected


def special(*contents):
    return [NewToken(content, special=True) for content in contents]


def plain(*contents):
    return [NewToken(content, special=False) for content in contents]


def vocabulary(documents):
    vocab = documents["tokenizer.json"]["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}


@pytest.mark.parametrize("make", SOURCES)
def test_reads_ids_of_vocabulary_and_added_tokens(make):
    documents = make()
    files = read_tokenizer(documents)
    expected = vocabulary(documents) | {t["content"]: t["id"] for t in documents["tokenizer.json"]["added_tokens"]}
    assert dict(files.ids) == expected
    assert files.size == len(expected)
    assert files.gaps == ()
    assert all(files.token_of(files.id_of(token)) == token for token in expected)
    assert files.id_of("<|nowhere|>") is None
    assert files.token_of(files.size) is None


def test_encodes_bare_text_without_frame_truncation_padding_and_dropout():
    documents = bpe()
    plain_ids = read_tokenizer(documents).encode("the category")
    documents["tokenizer.json"]["truncation"] = {
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    documents["tokenizer.json"]["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<s>",
    }  # fmt: skip
    documents["tokenizer.json"]["model"]["dropout"] = 0.9
    files = read_tokenizer(documents)
    assert [files.encode("the category") for _ in range(8)] == [plain_ids] * 8
    assert 0 not in plain_ids
    assert "".join(files.token_of(index) for index in plain_ids) == "theĠcategory"


def test_roles_come_from_both_files_as_transformers_reads_them():
    documents = bpe()
    assert read_tokenizer(documents).special == {"bos_token": "<s>", "eos_token": "</s>"}
    documents["special_tokens_map.json"] = {"eos_token": {"content": "<|old|>"}, "pad_token": "<s>"}
    assert read_tokenizer(documents).special == {"bos_token": "<s>", "eos_token": "<|old|>", "pad_token": "<s>"}
    documents["tokenizer_config.json"]["added_tokens_decoder"] = {}
    assert read_tokenizer(documents).special == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_gap_is_read_and_refused_when_a_token_would_be_added():
    documents = wordlevel()
    documents["tokenizer.json"]["added_tokens"].append({"id": 60, "content": "<|far|>", "special": True})
    files = read_tokenizer(documents)
    assert files.gaps == tuple(range(len(vocabulary(documents)), 60))
    with pytest.raises(InputRejected, match=r"no token has the ids 53, 54, 55, 56, 57, \.\.\. below the largest, 60"):
        add_tokens(documents, special("<|x|>"), {})


def test_a_hole_in_the_vocabulary_is_refused_too():
    documents = wordlevel()
    del documents["tokenizer.json"]["model"]["vocab"]["cat"]
    with pytest.raises(InputRejected, match="the tokenizers library closes such gaps"):
        add_tokens(documents, special("<|x|>"), {})


def test_added_tokens_out_of_order_are_refused():
    documents = bpe()
    size = read_tokenizer(documents).size
    documents["tokenizer.json"]["added_tokens"][-1]["id"] = size
    documents["tokenizer.json"]["added_tokens"].append({"id": size - 1, "content": "<|b|>", "special": True})
    with pytest.raises(InputRejected, match="not in the order of the ids"):
        add_tokens(documents, special("<|x|>"), {})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "tokenizer.json: not found; tokens cannot be added to a checkpoint without a tokenizer"),
        (["vocab.txt"], "only vocab.txt, which cannot be kept in step"),
        (["tokenizer.model", "merges.txt"], r"only merges.txt, tokenizer.model.*AutoTokenizer.from_pretrained"),
    ],
)
def test_without_tokenizer_json(names, message):
    with pytest.raises(InputRejected, match=message):
        read_tokenizer({"config.json": {}}, carried=names)


MALFORMED = {
    "is not a JSON object": lambda d: d.update({"tokenizer.json": []}),
    "tokenizer_config.json: is not a JSON object": lambda d: d.update({"tokenizer_config.json": 3}),
    "model: is not an object": lambda d: d["tokenizer.json"].update(model=None),
    "model.vocab: is neither": lambda d: d["tokenizer.json"]["model"].update(vocab="abc"),
    r"model.vocab\[1\]: is not a pair": lambda d: d["tokenizer.json"]["model"].update(vocab=[["a", 0.0], 3]),
    "id 1 is given to both '</s>' and 'twice'": lambda d: d["tokenizer.json"]["model"]["vocab"].update(twice=1),
    "the id of token 'half' is 1.5": lambda d: d["tokenizer.json"]["model"]["vocab"].update(half=1.5),
    "the id of token 'yes' is True": lambda d: d["tokenizer.json"]["model"]["vocab"].update(yes=True),
    "the id of token 'below' is -1": lambda d: d["tokenizer.json"]["model"]["vocab"].update(below=-1),
    "the id of token 'huge' is 1000000000000": lambda d: d["tokenizer.json"]["model"]["vocab"].update(huge=10**12),
    "added_tokens: is not a list": lambda d: d["tokenizer.json"].update(added_tokens={"a": 1}),
    r"added_tokens\[0\]: is not an object": lambda d: d["tokenizer.json"].update(added_tokens=["a"]),
    r"added_tokens\[0\].special: is not true": lambda d: d["tokenizer.json"]["added_tokens"][0].update(special="yes"),
    "'</s>' stands there twice": lambda d: d["tokenizer.json"]["added_tokens"][0].update(content="</s>"),
    "token '<s>' has two ids, 0 and 7": lambda d: d["tokenizer.json"]["added_tokens"][0].update(id=7),
    "id 0 is given to 'other'": lambda d: d["tokenizer.json"]["added_tokens"][0].update(content="other"),
    "fast_tokenizer_files": lambda d: d["tokenizer_config.json"].update(fast_tokenizer_files=["tokenizer.4.0.json"]),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_files_are_one_line(message):
    documents = bpe()
    MALFORMED[message](documents)
    with pytest.raises(InputRejected, match=message) as caught:
        read_tokenizer(documents)
    assert "\n" not in str(caught.value)


def test_what_the_library_cannot_read_is_one_line():
    documents = bpe()
    documents["tokenizer.json"]["pre_tokenizer"] = {"type": "\x1b[31mNoSuch"}
    with pytest.raises(InputRejected, match="the tokenizers library cannot read it") as caught:
        read_tokenizer(documents).encode("a")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("make", "tokens", "message"),
    [
        (bpe, special("</s>"), "the token '</s>' exists already, with id 1"),
        (bpe, plain("at"), r"the token 'at' exists already, with id \d+"),
        (bpe, special("<|old|>"), "the token '<|old|>' exists already, with id 393".replace("|", r"\|")),
        (bpe, plain(" category"), r"' category' exists already: it is read as 'Ġcategory', id \d+"),
        (wordpiece, plain("Category"), r"'Category' exists already: it is read as 'category', id \d+"),
        (unigram, plain("fox"), r"'fox' exists already: it is read as '▁fox', id \d+"),
        (bpe, special("<|x|>", "<|x|>"), "is named twice"),
        (bpe, special(" "), "nothing but whitespace"),
        (wordpiece, plain("bioRxiv", "BIORXIV"), "is read as 'biorxiv'"),
        (wordpiece, [NewToken("[X]", special=True, normalized=True)], r"'\[X\]' is special, but '\[x\]' would be read"),
        (
            bpe,
            [NewToken("a<s>b", special=False, single_word=True, normalized=False)],
            "would hide '<s>' inside longer words",
        ),
        (unigram, special("▁\u00a0"), "would be decoded as ''"),
        (bpe, plain("naïve"), "would be decoded as 'na�ve'"),
        (bpe, special("\x1b[31m\x1b[31m", "\x1b[31m\x1b[31m"), r"\\x1b\[31m.* is named twice"),
    ],
)
def test_tokens_that_cannot_be_added(make, tokens, message):
    documents = make()
    if make is unigram:
        documents["tokenizer.json"]["model"]["vocab"].append(["▁fox", -1.0])
        documents["tokenizer.json"]["added_tokens"][-1]["id"] += 1
    with pytest.raises(InputRejected, match=message):
        add_tokens(documents, tokens, {})


def test_a_special_token_is_its_own_whatever_the_normalizer_makes_of_plain_text():
    documents = wordpiece()
    _, ids = add_tokens(documents, special("Category"), {})
    assert ids == {"Category": read_tokenizer(documents).size}


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"pad": "<s>"}, "'pad' is not the name of a role"),
        ({"pad_token": "<|none|>"}, "pad_token: the tokenizer has no token '<|none|>'".replace("|", r"\|")),
        ({"cls_token": "Ġa b"}, "has a space, which a template cannot name"),
        ({"unk_token": "<s>"}, "unk_token: is part of the tokenizer's model"),
    ],
)
def test_roles_that_cannot_be_given(roles, message):
    with pytest.raises(InputRejected, match=message):
        add_tokens(bpe(), special("Ġa b"), roles)


def test_a_token_that_only_the_config_names_comes_first_or_is_refused():
    documents = bpe()
    documents["tokenizer_config.json"]["pad_token"] = "[PAD]"
    with pytest.raises(InputRejected, match=r"names '\[PAD\]', which tokenizer.json does not have"):
        add_tokens(documents, special("<|x|>"), {})
    size = read_tokenizer(documents).size
    changed, ids = add_tokens(documents, special("[PAD]", "<|x|>"), {})
    assert ids == {"[PAD]": size, "<|x|>": size + 1}
    assert read_tokenizer(documents | changed).gaps == ()


def test_a_decoder_that_contradicts_tokenizer_json_is_refused():
    documents = bpe_legacy()
    documents["tokenizer_config.json"]["added_tokens_decoder"]["1"]["content"] = "<|other|>"
    with pytest.raises(InputRejected, match=r"id 1 is '<\|other\|>', in tokenizer.json it is '</s>'"):
        add_tokens(documents, special("<|x|>"), {})


@pytest.mark.parametrize("make", SOURCES)
def test_the_given_documents_stay_as_they_are_and_the_vocabulary_is_shared(make):
    documents = make()
    before = copy.deepcopy(documents)
    changed, _ = add_tokens(documents, [*special("<|x|>"), *plain("bioRxiv")], {"pad_token": "<|x|>"})
    assert documents == before
    assert changed["tokenizer.json"]["model"] is documents["tokenizer.json"]["model"]
    assert all(changed[name] != documents.get(name) for name in changed)


def test_nothing_changes_when_a_role_is_what_it_was():
    assert add_tokens(bpe_legacy(), [], {"eos_token": "</s>"}) == ({}, {})


@pytest.mark.parametrize(("make", "normalized"), [(bpe, True), (wordpiece, True), (llama, False)])
def test_a_plain_token_is_normalized_unless_it_would_then_not_be_found(make, normalized):
    changed, _ = add_tokens(make(), plain("bioRxiv"), {})
    assert changed["tokenizer.json"]["added_tokens"][-1]["normalized"] is normalized


def test_flags_are_written_as_they_are_given():
    token = NewToken("<|x|>", special=True, lstrip=True, rstrip=True, single_word=True, normalized=True)
    changed, ids = add_tokens(bpe_legacy(), [token], {})
    flags = {"special": True, "lstrip": True, "rstrip": True, "single_word": True, "normalized": True}
    index = ids["<|x|>"]
    assert changed["tokenizer.json"]["added_tokens"][-1] == {"id": index, "content": "<|x|>"} | flags
    decoder = changed["tokenizer_config.json"]["added_tokens_decoder"]
    assert decoder[str(index)] == {"content": "<|x|>"} | flags
    assert changed["added_tokens.json"]["<|x|>"] == index
    json.dumps(changed)
