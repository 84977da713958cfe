"""What transformers makes of the edited files: the only truth about them."""

import pytest
from support.tokenizer_sources import SOURCES, TEMPLATE, bpe, bpe_legacy, unigram, wordpiece, write

from graftkit.checkpoint.tokenizer import NewToken, add_tokens, read_tokenizer, set_chat_template

NEW = (
    NewToken("<|tool|>", special=True),
    NewToken("bioRxiv", special=False),
    NewToken("<|pad|>", special=True),
    NewToken("<|end|>", special=True, lstrip=True),
    NewToken("alpha-keto", special=False, single_word=True),
)
SPECIAL = [token.content for token in NEW if token.special]
ROLES = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
INSIDE = {True: "x{}y 数{}字 one {} two{}", False: "one {} two ({})."}


def load(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module", params=SOURCES, ids=lambda make: make.__name__)
def grown(request, tmp_path_factory):
    """The loaded source, the loaded result, and what was written for it."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    documents = request.param()
    changed, ids = add_tokens(documents, NEW, ROLES)
    source = load(write(documents, folder / "source"))
    return source, load(write(documents | changed, folder / "result")), documents | changed, ids


def assert_grown(source, result, ids):
    assert {token: result.get_vocab()[token] for token in source.get_vocab()} == source.get_vocab()
    assert len(result) == len(source) + len(ids) == max(ids.values()) + 1
    assert {content: result.convert_tokens_to_ids(content) for content in ids} == ids
    for token in NEW:
        text = INSIDE[token.special]
        assert ids_of(result, token.content) == [ids[token.content]]
        assert ids_of(result, text.replace("{}", token.content)).count(ids[token.content]) == text.count("{}")
    assert set(result.all_special_tokens) == {*source.all_special_tokens, *SPECIAL}
    assert result.decode([ids[content] for content in SPECIAL], skip_special_tokens=True) == ""
    assert (result.pad_token_id, result.eos_token_id) == (ids["<|pad|>"], ids["<|end|>"])
    unchanged = {role: token for role, token in source.special_tokens_map.items() if role not in ROLES}
    assert result.special_tokens_map == unchanged | ROLES
    assert result.chat_template == source.chat_template
    for text in ("the category of tools", "Der Müller prüft", "昨天 x\n\n  y", "2 + 2 == 4"):
        assert ids_of(result, text) == ids_of(source, text)


def test_the_result_is_the_source_and_the_new_tokens(grown):
    source, result, _, ids = grown
    assert_grown(source, result, ids)
    assert type(result) is type(source)


def test_it_stays_so_when_transformers_saves_it(grown, tmp_path):
    source, result, _, ids = grown
    result.save_pretrained(tmp_path)
    assert_grown(source, load(tmp_path), ids)


def test_flags_survive_the_load(grown):
    _, result, documents, ids = grown
    entries = {entry["content"]: entry for entry in documents["tokenizer.json"]["added_tokens"]}
    for content, index in ids.items():
        loaded = result.added_tokens_decoder[index]
        flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
        assert {flag: getattr(loaded, flag) for flag in flags} == {flag: entries[content][flag] for flag in flags}


def test_the_reader_says_what_transformers_says(grown):
    _, result, documents, _ = grown
    files = read_tokenizer(documents)
    assert dict(files.ids) == result.get_vocab()
    assert files.size == len(result)
    assert {role: files.special[role] for role in result.special_tokens_map} == result.special_tokens_map


def test_the_frame_follows_the_role(tmp_path):
    for make in (bpe, unigram):
        documents = make()
        changed, ids = add_tokens(documents, NEW, ROLES)
        result = load(write(documents | changed, tmp_path / make.__name__))
        assert result("the cat")["input_ids"][-1] == ids["<|end|>"]
    documents = wordpiece()
    changed, ids = add_tokens(documents, NEW, {"cls_token": "<|tool|>"})
    folder = write(documents | changed, tmp_path / "wordpiece")
    assert load(folder)("the cat")["input_ids"][0] == ids["<|tool|>"]


def test_adding_twice_keeps_both_lists(tmp_path):
    for make in (bpe, bpe_legacy):
        documents = make()
        documents |= add_tokens(documents, NEW[:1], {})[0]
        documents |= add_tokens(documents, NEW[2:4], {})[0]
        special = load(write(documents, tmp_path / make.__name__)).all_special_tokens
        assert {"<|old|>", "<|tool|>", "<|pad|>", "<|end|>"} <= set(special)


@pytest.mark.parametrize("make", [bpe, bpe_legacy])
def test_a_new_chat_template_is_what_is_applied(make, tmp_path):
    documents = make()
    documents |= set_chat_template(documents, "<|{{ messages[0].role }}|>{{ messages[0].content }}")
    loaded = load(write(documents, tmp_path))
    assert loaded.chat_template != TEMPLATE
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|user|>hi"


def test_named_templates_stay(tmp_path):
    documents = bpe()
    del documents["chat_template.jinja"]
    named = [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "r"}]
    documents["tokenizer_config.json"]["chat_template"] = named
    documents |= set_chat_template(documents, "new")
    assert load(write(documents, tmp_path)).chat_template == {"default": "new", "rag": "r"}


def test_an_old_token_that_gets_a_role_keeps_its_id(tmp_path):
    documents = bpe()
    index = read_tokenizer(documents).id_of("at")
    changed, _ = add_tokens(documents, [], {"pad_token": "at"})
    loaded = load(write(documents | changed, tmp_path))
    assert (loaded.pad_token_id, len(loaded)) == (index, read_tokenizer(documents).size)
    assert loaded.decode([index], skip_special_tokens=True) == ""


def test_a_token_that_only_the_config_named_has_the_id_that_it_was_loaded_with(tmp_path):
    documents = bpe()
    documents["tokenizer_config.json"]["pad_token"] = "[PAD]"
    before = load(write(documents, tmp_path / "source")).pad_token_id
    changed, _ = add_tokens(documents, [NewToken("[PAD]", special=True), *NEW], {})
    assert load(write(documents | changed, tmp_path / "result")).pad_token_id == before
