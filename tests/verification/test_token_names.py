"""The check of renamed tokens: it passes what is right, and each planted fault is caught by what it leaves behind."""

import copy
import re

import pytest
from support.renamed import NAMES
from support.tokenizer_sources import bpe_legacy, write

from graftkit.checkpoint.tokenizer import Renamed, Renaming, rename_tokens
from graftkit.verification.subject import NewTokens
from graftkit.verification.tokens.tokenization import check_tokenization

TEMPLATE = "{% for m in messages %}<|old|>{{ m.role }} {{ m.content }}</s>{% endfor %}"


def legacy():
    documents = bpe_legacy()
    documents["tokenizer_config.json"]["chat_template"] = TEMPLATE
    documents["generation_config.json"] |= {"stop_strings": ["</s>"]}
    documents["processor_config.json"] = {"image_token": "<|old|>"}
    return documents


def checked(documents, result, renamed, folder):
    tokens = NewTokens({}, frozenset(), chat_template_changed=False, renamed=renamed)
    return check_tokenization(write(documents, folder / "source"), write(result, folder / "result"), tokens)


def apply(documents, names, special=None):
    changed, entries = rename_tokens(documents, [Renaming(old, new, special) for old, new in names.items()])
    renamed = {old: Renamed(entry.content, entry.special) for old, entry in entries.items()}
    return copy.deepcopy({**documents, **changed}), renamed


@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_every_kind_of_tokenizer_passes(make, tmp_path):
    documents = make()
    result, renamed = apply(documents, NAMES[make])
    report = checked(documents, result, renamed, tmp_path)
    assert (report.failures, report.differences, report.notes) == ((), (), ())
    assert report.covered["renamed_tokens"] == len(renamed)
    assert report.covered["placements"] == 8 * len(renamed)
    assert "2 renamed tokens" in report.figure()


def test_a_piece_that_becomes_a_token_is_shown_where_it_splits_old_text(tmp_path):
    documents = legacy()
    model = documents["tokenizer.json"]["model"]
    model["merges"] = [merge for merge in model["merges"] if "cat" not in (*merge, "".join(merge))]
    assert "cat" in model["vocab"]
    result, renamed = apply(documents, {"cat": "dog"})
    report = checked(documents, result, renamed, tmp_path)
    assert report.failures == ()
    assert {difference.token for difference in report.differences} == {"dog"}


def entry(result, content):
    return next(one for one in result["tokenizer.json"]["added_tokens"] if one["content"] == content)


def leave_it_in_the_list(result):
    result["tokenizer_config.json"]["additional_special_tokens"] = ["<|old|>"]


def leave_it_in_the_special_map(result):
    result["special_tokens_map.json"]["eos_token"]["content"] = "</s>"


def leave_it_in_the_added_tokens(result):
    added = result["added_tokens.json"]
    added["<|old|>"] = added.pop("<|tool_call|>")


def leave_it_in_the_decoder(result):
    decoder = result["tokenizer_config.json"]["added_tokens_decoder"]
    next(one for one in decoder.values() if one["content"] == "<|tool_call|>")["content"] = "<|old|>"


def leave_it_in_the_role(result):
    result["tokenizer_config.json"]["eos_token"]["content"] = "</s>"


def leave_it_in_the_vocabulary(result):
    vocab = result["tokenizer.json"]["model"]["vocab"]
    vocab["</s>"] = vocab.pop("<|im_end|>")
    entry(result, "<|im_end|>")["content"] = "</s>"


def leave_it_in_the_post_processor(result):
    pieces = result["tokenizer.json"]["post_processor"]["single"]
    pieces[-1]["SpecialToken"]["id"] = "</s>"
    known = result["tokenizer.json"]["post_processor"]["special_tokens"]
    known["</s>"] = {**known["<|im_end|>"], "id": "</s>", "tokens": ["</s>"]}


def leave_it_in_the_template(result):
    config = result["tokenizer_config.json"]
    config["chat_template"] = config["chat_template"].replace("<|im_end|>", "</s>")


def leave_it_in_the_processor(result):
    result["processor_config.json"]["image_token"] = "<|old|>"


def leave_it_among_the_stop_strings(result):
    result["generation_config.json"]["stop_strings"] = ["</s>"]


def write_the_template_anew(result):
    result["tokenizer_config.json"]["chat_template"] += "<|im_end|>"


def move_an_id(result):
    vocab = result["tokenizer.json"]["model"]["vocab"]
    vocab["<s>"], vocab["<|im_end|>"] = vocab["<|im_end|>"], vocab["<s>"]
    first, second = entry(result, "<s>"), entry(result, "<|im_end|>")
    first["content"], second["content"] = second["content"], first["content"]


def renumber_the_generation_config(result):
    result["generation_config.json"]["eos_token_id"] = 2


def renumber_the_config(result):
    result["config.json"]["eos_token_id"] = 2


def rename_another(result):
    vocab = result["tokenizer.json"]["model"]["vocab"]
    vocab["<|other|>"] = vocab.pop("<s>")
    entry(result, "<s>")["content"] = "<|other|>"


def make_it_plain(result):
    entry(result, "<|tool_call|>")["special"] = False
    for one in result["tokenizer_config.json"]["added_tokens_decoder"].values():
        one["special"] = one["content"] != "<|tool_call|>"
    result["tokenizer_config.json"]["additional_special_tokens"] = []
    result["special_tokens_map.json"]["additional_special_tokens"] = []


def give_it_another_flag(result):
    entry(result, "<|tool_call|>")["lstrip"] = True
    for one in result["tokenizer_config.json"]["added_tokens_decoder"].values():
        one["lstrip"] = one["content"] == "<|tool_call|>"


def lose_a_merge(result):
    result["tokenizer.json"]["model"]["merges"].pop()


FAULTS = {
    leave_it_in_the_list: r"token '<\|old\|>' \(id \d+\) appears at load",
    leave_it_in_the_special_map: r"special_tokens_map.json: eos_token.content still names '</s>'",
    leave_it_in_the_added_tokens: r"added_tokens.json: <\|old\|> still names '<\|old\|>'",
    leave_it_in_the_decoder: r"added_tokens_decoder.\d+.content still names '<\|old\|>'",
    leave_it_in_the_role: "eos_token was '<|im_end|>', now it is '</s>'|'</s>'.*appears at load",
    leave_it_in_the_vocabulary: r"id 1 was '<\|im_end\|>', now '</s>' stands there",
    leave_it_in_the_post_processor: r"tokenizer.json: post_processor.*still names '</s>'",
    leave_it_in_the_template: "the chat template is not the source's",
    leave_it_in_the_processor: r"processor_config.json: image_token still names '<\|old\|>'",
    leave_it_among_the_stop_strings: r"generation_config.json: stop_strings\[0\] still names '</s>'",
    write_the_template_anew: "the chat template is not the source's",
    move_an_id: r"id 0 was '<s>', now '<\|im_end\|>' stands there",
    renumber_the_generation_config: "generation_config.json: eos_token_id is 2, the tokenizer's eos_token is id 1",
    renumber_the_config: "config.json: eos_token_id is 2, the tokenizer's eos_token is id 1",
    rename_another: r"id 0 was '<s>', now '<\|other\|>' stands there",
    make_it_plain: r"the renamed token '<\|tool_call\|>' was to be special, and is not",
    give_it_another_flag: r"the added token '<\|old\|>' was without flags, now it is lstrip",
    lose_a_merge: "tokenizer.json: model is not the source's",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fault, tmp_path):
    documents = legacy()
    result, renamed = apply(documents, NAMES[bpe_legacy])
    fault(result)
    report = checked(documents, result, renamed, tmp_path)
    assert any(re.search(FAULTS[fault], failure) for failure in report.failures), report.failures


def test_a_template_that_reads_otherwise_is_caught_though_its_text_is_the_expected_one(tmp_path):
    """A template that asks how long its own marker is: the text is renamed as it should be, and what it gives is not the same."""
    documents = legacy()
    documents["tokenizer_config.json"]["chat_template"] = (
        "{% for m in messages %}{{ m.content }}{% if '</s>'|length == 4 %}</s>{% endif %}{% endfor %}"
    )
    result, renamed = apply(documents, NAMES[bpe_legacy])
    report = checked(documents, result, renamed, tmp_path)
    assert any("gives a conversation other ids" in failure for failure in report.failures)


def test_a_token_that_was_asked_to_be_special_has_to_be(tmp_path):
    documents = legacy()
    result, renamed = apply(documents, {"<|old|>": "<|tool_call|>"}, special=False)
    assert checked(documents, result, renamed, tmp_path).failures == ()
    wrong = {old: Renamed(now.content, special=True) for old, now in renamed.items()}
    assert any("was to be special" in one for one in checked(documents, result, wrong, tmp_path).failures)
