"""The check of written tokenizers: it passes what is right, and each planted fault is caught."""

import copy
import dataclasses
import json
import random
import re

import pytest
from support.tokenizer_sources import SOURCES, bpe, bpe_legacy, unigram, wordpiece, write

from graftkit.checkpoint.tokenizer import NewToken, add_tokens, set_chat_template
from graftkit.errors import InputRejected
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.verification.subject import NewTokens
from graftkit.verification.tokens.tokenization import check_tokenization

WORKS = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
NEW = (
    NewToken("<|tool_call|>", special=True),
    NewToken("bioRxiv", special=False),
    NewToken("<|end|>", special=True),
)
SPECIAL = {"<|tool_call|>", "<|end|>"}
ROLES = {"eos_token": "<|end|>"}


@pytest.fixture(scope="module", params=SOURCES, ids=lambda make: make.__name__)
def every(request, tmp_path_factory):
    return request.param(), tmp_path_factory.mktemp(request.param.__name__)


def run(documents, result, folder, ids, special=SPECIAL, probes=PROBE_TEXTS, chat_template_changed=False):
    tokens = NewTokens(ids, frozenset(special), chat_template_changed)
    return check_tokenization(
        write(documents, folder / "source"), write(result, folder / "result"), tokens, probes=probes
    )


def test_every_kind_of_tokenizer_passes(every):
    documents, folder = every
    changed, ids = add_tokens(documents, NEW, ROLES)
    report = run(documents, documents | changed, folder, ids)
    assert report.passed
    assert report.failures == ()
    assert report.covered["new_tokens"] == 3
    assert report.covered["old_ids"] > 50
    assert report.covered["probe_texts"] > len(PROBE_TEXTS)
    assert {difference.token for difference in report.differences} == {"bioRxiv"}
    assert any(note.startswith("eos_token was ") for note in report.notes)
    json.dumps(dataclasses.asdict(report))


def test_equal_tokenizers_pass_without_a_difference(every):
    documents, folder = every
    report = run(documents, documents, folder, {})
    assert (report.failures, report.differences, report.notes) == ((), (), ())


@pytest.fixture
def grown():
    documents = bpe()
    changed, ids = add_tokens(documents, NEW, ROLES)
    return documents, copy.deepcopy(documents | changed), ids


def tokenizer(result):
    return result["tokenizer.json"]


def swap_old_ids(result):
    vocab = tokenizer(result)["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def drop_new_token(result):
    tokenizer(result)["added_tokens"] = [t for t in tokenizer(result)["added_tokens"] if t["content"] != "bioRxiv"]


def leave_a_gap(result):
    for entry in tokenizer(result)["added_tokens"][-2:]:
        entry["id"] += 5


def swap_new_ids(result):
    first, second = tokenizer(result)["added_tokens"][-2:]
    first["content"], second["content"] = second["content"], first["content"]


def entry_of(result, content):
    return next(entry for entry in tokenizer(result)["added_tokens"] if entry["content"] == content)


def register_as_plain(result):
    entry_of(result, "<|tool_call|>")["special"] = False


def only_whole_words(result):
    entry_of(result, "bioRxiv")["single_word"] = True
    entry_of(result, "<|tool_call|>")["content"] = "<|tool_cal1|>"


def forget_special_list(result):
    result["tokenizer_config.json"]["extra_special_tokens"].remove("<|tool_call|>")


def replace_special_list(result):
    result["tokenizer_config.json"]["extra_special_tokens"] = ["<|tool_call|>", "<|end|>", "</s>"]


def name_a_missing_role(result):
    result["tokenizer_config.json"]["mask_token"] = "<mask>"


def keep_old_eos_in_generation(result):
    result["generation_config.json"]["eos_token_id"] = [1]


def drop_eos_from_generation(result):
    del result["generation_config.json"]["eos_token_id"]


def drop_generation_config(result):
    del result["generation_config.json"]


def keep_old_eos_in_config(result):
    result["config.json"]["eos_token_id"] = 1


def keep_old_eos_in_text_config(result):
    result["config.json"]["text_config"] = {"eos_token_id": 1}


def lose_a_role(result):
    del result["tokenizer_config.json"]["bos_token"]


def lose_template(result):
    del result["chat_template.jinja"]


def alter_template(result):
    result["chat_template.jinja"] += " "


def lose_a_merge(result):
    tokenizer(result)["model"]["merges"].pop()


def change_pre_tokenizer(result):
    tokenizer(result)["pre_tokenizer"]["add_prefix_space"] = True


def change_old_flag(result):
    entry_of(result, "<|old|>")["lstrip"] = True


def change_class(result):
    result["tokenizer_config.json"]["tokenizer_class"] = "GPT2Tokenizer"


def change_padding_side(result):
    result["tokenizer_config.json"]["padding_side"] = "left"


def drop_decoder(result):
    tokenizer(result)["decoder"] = {"type": "Replace", "pattern": {"String": "x"}, "content": "z"}


def break_json(result):
    result["tokenizer.json"] = "{"


FAULTS = {
    swap_old_ids: r"tokenizer: id \d+ was 'a', now 'b' stands there \(and 1 more\)",
    drop_new_token: "the new token 'bioRxiv' should have id 395, it is loaded with none",
    leave_a_gap: r"token 'bioRxiv' has id 400 in tokenizer.json, it is loaded with 395 \(and 1 more\)",
    swap_new_ids: "the new token 'bioRxiv' should have id 395, it is loaded with 396",
    register_as_plain: r"the new token '<\|tool_call\|>' is registered as plain, not as special",
    only_whole_words: r"the new token '<\|tool_call\|>' \(id 394\) is not read as one id in '<\|tool_call\|>'",
    forget_special_list: r"the new token '<\|tool_call\|>' is missing in all_special_tokens",
    replace_special_list: r"'<\|old\|>' is no longer a special token",
    name_a_missing_role: r"token '<mask>' \(id 397\) appears at load, and nobody asked for it",
    keep_old_eos_in_generation: r"generation_config.json: eos_token_id is \[1\], the tokenizer's eos_token is id 396",
    drop_eos_from_generation: "generation_config.json: eos_token_id is not set, the tokenizer's eos_token is id 396",
    drop_generation_config: "generation_config.json: is missing",
    keep_old_eos_in_config: "config.json: eos_token_id is 1, the tokenizer's eos_token is id 396",
    keep_old_eos_in_text_config: "config.json: text_config: eos_token_id is 1, the tokenizer's eos_token is id 396",
    lose_a_role: "bos_token was '<s>', now there is none",
    lose_template: "the chat template is lost",
    alter_template: "the chat template is not the source's",
    lose_a_merge: "tokenizer.json: model is not the source's",
    change_pre_tokenizer: "old text splits in another way, and no new token explains it",
    change_old_flag: r"the added token '<\|old\|>' was special, now it is special, lstrip",
    change_class: "AutoTokenizer loads a GPT2Tokenizer, it was a TokenizersBackend",
    change_padding_side: "padding_side was right, now left",
    drop_decoder: r"id 395 of the new token 'bioRxiv' is decoded as 'bioRziv'",
    break_json: "AutoTokenizer cannot load the tokenizer",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_caught(plant, grown, tmp_path):
    documents, result, ids = grown
    plant(result)
    report = run(documents, result, tmp_path, ids)
    assert not report.passed
    found = "\n".join(report.failures)
    assert re.search(FAULTS[plant], found), found
    assert all(failure.isprintable() for failure in report.failures)


def grow(documents, *tokens, **roles):
    changed, ids = add_tokens(documents, tokens, roles)
    return documents | changed, ids


def test_a_plain_token_inside_longer_words_is_shown_and_passes(tmp_path):
    documents = bpe()
    result, ids = grow(documents, NewToken("ategor", special=False))
    report = run(documents, result, tmp_path, ids, special=())
    assert report.passed
    shown = {difference.probe: difference for difference in report.differences}
    assert shown["category"].after == ("c", "ategor", "y")
    assert str(shown["category"]).endswith("became c|ategor|y, because of 'ategor'")
    assert len(report.differences) <= 4


def test_a_special_token_in_text_that_does_not_hold_it_fails(tmp_path):
    documents = wordpiece()
    result, ids = grow(documents, NewToken("[TOOL]", special=True))
    result = copy.deepcopy(result)
    entry_of(result, "[TOOL]")["normalized"] = True
    report = run(documents, result, tmp_path, ids, special={"[TOOL]"})
    assert len(report.failures) == 2
    assert report.failures[0].endswith("'[TOOL]' is written although special tokens are to be skipped")
    assert "the special token stands where it is not written: in '[tool]'" in report.failures[1]
    assert report.failures[1].endswith("because of '[TOOL]'")


def test_a_special_token_that_old_text_holds_is_shown(tmp_path):
    documents = bpe()
    result, ids = grow(documents, NewToken("<|user|>", special=True))
    report = run(documents, result, tmp_path, ids, special={"<|user|>"}, probes=["a <|user|> b"])
    assert report.passed
    assert [difference.after for difference in report.differences] == [("<|user|>",)]


def test_a_longer_token_in_the_same_place_is_no_fault(tmp_path):
    documents = bpe()
    result, ids = grow(documents, NewToken("<|x|>", special=True), NewToken("<|x|>y", special=True))
    assert run(documents, result, tmp_path, ids, special=set(ids)).passed


def test_a_template_that_is_changed_on_purpose(tmp_path):
    documents = bpe()
    result = documents | set_chat_template(documents, WORKS)
    assert not run(documents, result, tmp_path / "a", {}).passed
    assert run(documents, result, tmp_path / "b", {}, chat_template_changed=True).passed
    del result["chat_template.jinja"]
    report = run(documents, result, tmp_path / "c", {}, chat_template_changed=True)
    assert report.failures == ("tokenizer: the chat template was to be set, but none is loaded",)


PARTS = "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "chatml.jinja",
            "the chat template holds no Jinja, so that every conversation becomes 'chatml.jinja'; where that is a file",
        ),
        (
            "{{ bos_token }} hello",
            "the chat template loses the messages: a question and its answer, rendered, gives '<s> hello'",
        ),
        (
            "{{ messages[0].text.lower() }}",
            "the chat template loses the messages: a question and its answer, rendered, fails: ",
        ),
        (
            "{{ messages[0].content }}",
            "the chat template loses the messages: a question and its answer, rendered, gives 'Where",
        ),
        (
            "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}" + WORKS + "{% endif %}",
            "the chat template loses the messages behind a system message: rendered, it gives 'Zw",
        ),
        (WORKS, ""),
        (PARTS, ""),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + WORKS, ""),
    ],
)
def test_a_new_template_has_to_say_what_the_messages_say(tmp_path, template, words):
    documents = bpe()
    result = documents | set_chat_template(documents, template)
    report = run(documents, result, tmp_path, {}, chat_template_changed=True)
    assert [failure.startswith(f"tokenizer: {words}") for failure in report.failures] == ([True] if words else [])


def test_a_template_of_the_source_that_is_none_is_a_note(tmp_path):
    documents = bpe() | {"chat_template.jinja": "chatml.jinja"}
    report = run(documents, documents, tmp_path, {})
    assert report.passed
    assert report.notes == ("the chat template is the source's and holds no Jinja: 'chatml.jinja'",)


def test_a_pad_token_that_becomes_eos_is_caught_and_one_that_was_is_a_note(tmp_path):
    documents = bpe()
    changed, ids = add_tokens(documents, (), {"pad_token": "</s>"})
    report = run(documents, documents | changed, tmp_path / "a", ids)
    assert any(failure.startswith("tokenizer: pad_token is '</s>', the eos_token too: ") for failure in report.failures)
    report = run(documents | changed, documents | changed, tmp_path / "b", {})
    assert report.passed
    assert any(note.startswith("pad_token is '</s>', the eos_token too: ") for note in report.notes)


def test_a_stale_copy_of_the_template_is_caught(tmp_path):
    documents = bpe_legacy() | {"chat_template.jinja": "{{ messages }}"}
    result = copy.deepcopy(documents)
    result["tokenizer_config.json"]["chat_template"] = "another"
    report = run(documents, result, tmp_path / "a", {})
    assert report.failures == ("tokenizer: tokenizer_config.json: the copy of the chat template is not the source's",)
    result = documents | {"chat_template.jinja": WORKS}
    report = run(documents, result, tmp_path / "b", {}, chat_template_changed=True)
    assert report.failures == ("tokenizer: tokenizer_config.json: the copy of the chat template is not the new one",)


def test_a_disagreement_of_the_source_is_a_note(tmp_path):
    documents = bpe()
    documents["generation_config.json"]["eos_token_id"] = 9
    report = run(documents, documents, tmp_path, {})
    assert report.passed
    assert report.notes == ("generation_config.json: eos_token_id is 9, the tokenizer's eos_token is id 1",)


def test_ids_that_a_class_adds_at_load_collide_with_new_ones(tmp_path):
    documents = unigram()
    documents["tokenizer_config.json"]["extra_ids"] = 3
    del documents["tokenizer_config.json"]["additional_special_tokens"]
    result, ids = grow(documents, NewToken("<|x|>", special=True))
    report = run(documents, result, tmp_path, ids, special=set(ids))
    assert re.search(r"id \d+ was '<extra_id_\d>', now .* stands there", report.failures[0])


def test_a_frame_that_changes_without_a_role_is_caught(tmp_path):
    documents = bpe()
    result = copy.deepcopy(documents)
    result["tokenizer.json"]["post_processor"]["single"].pop()
    report = run(documents, result, tmp_path, {})
    assert len(report.failures) == 1
    assert "a text was framed by ['<s>', '</s>'], now by ['<s>'," in report.failures[0]


def test_a_token_that_the_config_forgets_is_not_loaded_by_classes_that_rebuild(tmp_path):
    documents = bpe_legacy()
    result, ids = grow(documents, *NEW)
    del result["tokenizer_config.json"]["added_tokens_decoder"][str(ids["bioRxiv"])]
    report = run(documents, result, tmp_path, ids)
    assert re.search("the new token '.*' should have id", report.failures[0])


def test_a_source_that_cannot_be_loaded_is_rejected(tmp_path):
    documents = bpe()
    with pytest.raises(InputRejected, match="AutoTokenizer cannot load the tokenizer"):
        run(documents | {"tokenizer.json": "{"}, documents, tmp_path, {})


LETTERS = [*"abcXYZ<|>[]_- .#▁Ġ/\\'\"éß東雨🎉ع\u00a0\nıİﬁ\u0301", "cat", "tool", "category", "</s>", "<s>"]


def random_token(rng):
    flags = {name: rng.random() < 0.15 for name in ("lstrip", "rstrip", "single_word")}
    content = "".join(rng.choices(LETTERS, k=rng.randint(1, 6)))
    return NewToken(content, special=rng.random() < 0.5, normalized=rng.choice([None, True, False]), **flags)


def test_whatever_is_not_refused_passes(every):
    documents, folder = every
    rng = random.Random(11)
    passed = 0
    for _ in range(25):
        tokens = [random_token(rng) for _ in range(rng.randint(1, 3))]
        try:
            result, ids = grow(documents, *tokens)
        except InputRejected:
            continue
        special = {token.content for token in tokens if token.special}
        report = run(documents, result, folder, ids, special=special)
        assert report.failures == (), tokens
        passed += 1
    assert passed > 5
