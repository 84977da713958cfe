"""Special tokens and roles in every file that names them."""

import pytest
from support.tokenizer_sources import FLAGS, bpe, bpe_legacy, unigram, wordpiece

from graftkit.checkpoint.tokenizer import NewToken, add_tokens, read_tokenizer, tokenizer_notes
from graftkit.checkpoint.tokenizer.roles import renamed_frame, with_frame

X = NewToken("<|x|>", special=True)
PLAIN = NewToken("bioRxiv", special=False)


def added(documents, *tokens, **roles):
    changed, ids = add_tokens(documents, tokens, roles)
    return changed, ids


@pytest.mark.parametrize("spelling", ["extra_special_tokens", "additional_special_tokens"])
def test_the_list_that_a_file_uses_is_kept_and_extended(spelling):
    documents = bpe()
    config = documents["tokenizer_config.json"]
    config[spelling] = config.pop("extra_special_tokens")
    changed, _ = added(documents, X, PLAIN)
    assert changed["tokenizer_config.json"][spelling] == ["<|old|>", "<|x|>"]


@pytest.mark.parametrize("extra", [None, {}, {"image_token": "<|old|>"}])
def test_a_config_without_a_list_gets_the_spelling_that_both_versions_read(extra):
    documents = bpe()
    del documents["tokenizer_config.json"]["extra_special_tokens"]
    if extra is not None:
        documents["tokenizer_config.json"]["extra_special_tokens"] = extra
    changed, _ = added(documents, X)
    assert changed["tokenizer_config.json"]["additional_special_tokens"] == ["<|x|>"]
    assert changed["tokenizer_config.json"].get("extra_special_tokens") == extra


def test_a_list_in_the_special_tokens_map_is_inherited():
    documents = bpe()
    del documents["tokenizer_config.json"]["extra_special_tokens"]
    documents["special_tokens_map.json"] = {"additional_special_tokens": ["<|old|>"]}
    changed, _ = added(documents, X)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert changed[name]["additional_special_tokens"] == ["<|old|>", "<|x|>"]


def test_without_a_tokenizer_config_the_special_tokens_map_is_used():
    documents = bpe()
    del documents["tokenizer_config.json"]
    documents["special_tokens_map.json"] = {"eos_token": "</s>"}
    changed, _ = added(documents, X)
    assert changed["special_tokens_map.json"] == {"eos_token": "</s>", "additional_special_tokens": ["<|x|>"]}
    assert "tokenizer_config.json" not in changed
    del documents["special_tokens_map.json"]
    changed, _ = added(documents, X)
    assert changed["tokenizer_config.json"] == {"additional_special_tokens": ["<|x|>"]}
    assert "tokenizer_config.json" not in added(documents, PLAIN)[0]


def test_plain_tokens_stay_out_of_the_lists():
    changed, _ = added(bpe_legacy(), PLAIN)
    assert sorted(changed) == ["added_tokens.json", "tokenizer.json", "tokenizer_config.json"]
    assert changed["tokenizer_config.json"]["additional_special_tokens"] == ["<|old|>"]


def test_a_role_keeps_the_form_of_each_file_and_the_displaced_token_stays_special():
    changed, _ = added(bpe_legacy(), X, eos_token="<|x|>", pad_token="<|x|>")
    role = {"content": "<|x|>", **FLAGS}
    config, special_map = changed["tokenizer_config.json"], changed["special_tokens_map.json"]
    assert config["eos_token"] == {"__type": "AddedToken", **role}
    assert special_map["eos_token"] == special_map["pad_token"] == role
    # GPT-2's unk_token is </s> as well: it is special by that role
    assert config["additional_special_tokens"] == ["<|old|>"]
    changed, _ = added(bpe(), X, eos_token="<|x|>")
    assert changed["tokenizer_config.json"]["eos_token"] == "<|x|>"
    assert changed["tokenizer_config.json"]["extra_special_tokens"] == ["<|old|>", "</s>"]


def test_an_old_plain_token_that_gets_a_role_becomes_special_in_tokenizer_json():
    documents = bpe()
    changed, ids = added(documents, pad_token="at")
    index = read_tokenizer(documents).id_of("at")
    assert ids == {}
    entries = changed["tokenizer.json"]["added_tokens"]
    assert [entry["id"] for entry in entries] == sorted(entry["id"] for entry in entries)
    assert next(e for e in entries if e["content"] == "at") == {
        "id": index, "content": "at", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    assert changed["config.json"]["pad_token_id"] == index


def test_ids_in_config_and_generation_config():
    documents = bpe()
    changed, ids = added(documents, X, eos_token="<|x|>", pad_token="<|x|>")
    index = ids["<|x|>"]
    assert changed["config.json"] == documents["config.json"] | {"eos_token_id": index, "pad_token_id": index}
    assert changed["generation_config.json"] == {"bos_token_id": 0, "eos_token_id": [index, 1], "pad_token_id": index}
    again, ids = add_tokens(documents | changed, [], {"eos_token": "</s>"})
    assert again["generation_config.json"]["eos_token_id"] == [1, index]


def test_sub_configs_follow_where_they_name_the_same_vocabulary():
    documents = bpe()
    documents["config.json"] = {
        "model_type": "llava",
        "text_config": {"eos_token_id": [1, 5], "vocab_size": 512},
        "decoder": {"eos_token_id": 1, "inner": {"eos_token_id": 1}},
        "audio_config": {"eos_token_id": 99},
        "vision_config": {"hidden_size": 4},
    }
    changed, ids = added(documents, X, eos_token="<|x|>")
    index = ids["<|x|>"]
    assert changed["config.json"] == {
        "model_type": "llava",
        "text_config": {"eos_token_id": [index, 1, 5], "vocab_size": 512},
        "decoder": {"eos_token_id": index, "inner": {"eos_token_id": index}},
        "audio_config": {"eos_token_id": 99},
        "vision_config": {"hidden_size": 4},
        "eos_token_id": index,
    }
    assert changed["config.json"]["vision_config"] is documents["config.json"]["vision_config"]


def test_roles_that_the_config_does_not_name_are_not_put_there():
    documents = wordpiece()
    changed, ids = added(documents, X, cls_token="<|x|>")
    assert "config.json" not in changed
    documents["config.json"]["cls_token_id"] = 2
    changed, ids = added(documents, X, cls_token="<|x|>")
    assert changed["config.json"]["cls_token_id"] == ids["<|x|>"]


def test_the_padding_section_of_tokenizer_json_follows():
    documents = wordpiece()
    documents["tokenizer.json"]["padding"] = {"strategy": "BatchLongest", "pad_id": 0, "pad_token": "[PAD]"}
    changed, ids = added(documents, X, pad_token="<|x|>")
    expected = {"strategy": "BatchLongest", "pad_id": ids["<|x|>"], "pad_token": "<|x|>"}
    assert changed["tokenizer.json"]["padding"] == expected


def test_a_post_processor_follows_a_role_that_only_it_plays():
    documents = unigram()
    changed, ids = added(documents, X, eos_token="<|x|>")
    frame = changed["tokenizer.json"]["post_processor"]
    assert "</s>" not in str(frame)
    assert frame["special_tokens"] == {"<|x|>": {"id": "<|x|>", "ids": [ids["<|x|>"]], "tokens": ["<|x|>"]}}
    assert list(tokenizer_notes(documents, {"eos_token": "<|x|>"})) == [
        "the post-processor puts '<|x|>' where it put '</s>'"
    ]


def test_a_post_processor_stays_where_the_token_plays_another_role_too():
    documents = unigram()
    documents["tokenizer_config.json"]["sep_token"] = "</s>"
    changed, _ = added(documents, X, eos_token="<|x|>")
    assert changed["tokenizer.json"]["post_processor"] == documents["tokenizer.json"]["post_processor"]
    assert list(tokenizer_notes(documents, {"eos_token": "<|x|>"})) == [
        "the post-processor still puts '</s>': it plays another role beside eos_token"
    ]


def test_sep_and_cls_pairs_are_renamed_inside_a_sequence():
    roles = {"cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
    frame = {"type": "Sequence", "processors": [{"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}]}
    renamed = renamed_frame(roles, roles | {"sep_token": "<e>", "eos_token": "<e>"})
    assert renamed == {"</s>": "<e>"}
    assert with_frame(frame, renamed, {"<e>": 9})["processors"][0]["sep"] == ["<e>", 9]
    assert renamed_frame(roles, roles | {"eos_token": "<e>"}) == {}


def test_notes_name_forced_ids_and_slow_files():
    documents = bpe() | {"generation_config.json": {"forced_eos_token_id": 1}}
    notes = list(tokenizer_notes(documents, {"eos_token": "<|old|>"}, carried=["vocab.json", "model.safetensors"]))
    assert notes[-2:] == [
        "generation_config.json: forced_eos_token_id still names id 1",
        "vocab.json: kept unchanged; whatever reads nothing else does not know the new tokens",
    ]
