"""Where documents name tokens by ids: each form under other ids, and what is left alone."""

import json

import pytest
from support.tokenizer_sources import SOURCES

from graftkit.checkpoint.tokenizer.id_places import doubtful_places, id_places, with_moved

#: Of ten tokens the third and the seventh are gone.
MOVED = {index: place for place, index in enumerate(index for index in range(10) if index not in (2, 6))}
ROWS = 10

FIELDS = {
    "a role": ({"pad_token_id": 3}, {"pad_token_id": 2}),
    "several ends": ({"eos_token_id": [9, 5]}, {"eos_token_id": [7, 4]}),
    "an image": ({"image_token_index": 8, "boi_token_id": 4}, {"image_token_index": 6, "boi_token_id": 3}),
    "nothing": ({"pad_token_id": None, "eos_token_id": -1}, {"pad_token_id": None, "eos_token_id": -1}),
    "past the table": ({"image_token_id": 10}, {"image_token_id": 10}),
    "names of XLM": ({"pad_index": 3, "lang_id": 3}, {"pad_index": 2, "lang_id": 3}),
    "below": ({"text_config": {"bos_token_id": 7}}, {"text_config": {"bos_token_id": 5}}),
    "another vocabulary": (
        {"audio_config": {"pad_token_id": 7, "vocab_size": 4}}, {"audio_config": {"pad_token_id": 7, "vocab_size": 4}},
    ),
    "suppressed": ({"suppress_tokens": [2, 3, 6, 9]}, {"suppress_tokens": [2, 7]}),
    "suppressed at the beginning": ({"begin_suppress_tokens": [6]}, {"begin_suppress_tokens": []}),
    "bad words": ({"bad_words_ids": [[1, 2], [5], [3, 7]]}, {"bad_words_ids": [[4], [2, 5]]}),
    "forced words": ({"force_words_ids": [[[3], [4, 5]], [7]]}, {"force_words_ids": [[[2], [3, 4]], [5]]}),
    "biases": ({"sequence_bias": [[[3, 5], -1.5], [[2], 8.0]]}, {"sequence_bias": [[[2, 4], -1.5]]}),
    "forced positions": ({"forced_decoder_ids": [[1, 3], [2, None]]}, {"forced_decoder_ids": [[1, 2], [2, None]]}),
    "languages": ({"lang_to_id": {"<|en|>": 4}}, {"lang_to_id": {"<|en|>": 3}}),
    "a map of all": ({"vocabulary_map": {"a": 1, "b": 2, "c": 3}}, {"vocabulary_map": {"a": 1, "c": 2}}),
    "numbers of other things": ({"num_image_tokens": 3, "max_new_tokens": 7}, {"num_image_tokens": 3, "max_new_tokens": 7}),
}  # fmt: skip


@pytest.mark.parametrize("case", FIELDS)
@pytest.mark.parametrize("document", ["config.json", "generation_config.json"])
def test_a_field_under_other_ids(case, document):
    before, after = FIELDS[case]
    documents = {document: before}
    untouched = json.dumps(documents)
    result = with_moved(documents, id_places(documents, ROWS), MOVED.get)
    assert {**documents, **result} == {document: after}
    assert json.dumps(documents) == untouched


def test_what_is_needed_cannot_go_and_what_only_restrains_can():
    fields = {"eos_token_id": [9, 5], "suppress_tokens": [2], "forced_decoder_ids": [[1, 3]], "bad_words_ids": [[6]]}
    places = list(id_places({"generation_config.json": fields}, ROWS))
    needed = {index for place in places if place.form.needed for index in place.ids}
    assert needed == {9, 5, 3}
    assert {index for place in places for index in place.ids} == {9, 5, 3, 2, 6}


def test_the_files_of_a_tokenizer():
    entry = {"content": "<s>", "special": True}
    documents = {
        "tokenizer.json": {
            "added_tokens": [{"id": 1, **entry}, {"id": 6, "content": "<x>", "special": True}, {"id": 9, **entry}],
            "padding": {"pad_id": 3, "pad_token": "<p>"},
            "post_processor": {
                "type": "Sequence",
                "processors": [
                    {"type": "BertProcessing", "sep": ["</s>", 9], "cls": ["<s>", 1]},
                    {"type": "TemplateProcessing", "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}},
                ],
            },
        },
        "tokenizer_config.json": {"added_tokens_decoder": {"1": entry, "6": {"content": "<x>"}, "9": entry}},
        "added_tokens.json": {"<s>": 1, "<x>": 6, "</s>": 9},
        "processor_config.json": {"image_token_id": 8},
    }  # fmt: skip
    result = with_moved(documents, id_places(documents, ROWS), MOVED.get)
    tokenizer = result["tokenizer.json"]
    assert [token["id"] for token in tokenizer["added_tokens"]] == [1, 7]
    assert tokenizer["padding"] == {"pad_id": 2, "pad_token": "<p>"}
    bert, template = tokenizer["post_processor"]["processors"]
    assert (bert["sep"], bert["cls"]) == (["</s>", 7], ["<s>", 1])
    assert template["special_tokens"]["<s>"]["ids"] == [3]
    assert list(result["tokenizer_config.json"]["added_tokens_decoder"]) == ["1", "7"]
    assert result["added_tokens.json"] == {"<s>": 1, "</s>": 7}
    assert result["processor_config.json"] == {"image_token_id": 6}


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_the_same_ids_leave_every_document_the_identical_object(make):
    documents = make()
    assert with_moved(documents, id_places(documents, 512), lambda index: index) == {}


def test_a_number_that_may_be_an_id_is_named():
    (place,) = doubtful_places({"config.json": {"insert_layer_id": 6, "pad_token_id": 3, "hidden_size": 4}})
    assert str(place) == "config.json: insert_layer_id"
