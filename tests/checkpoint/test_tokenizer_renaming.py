"""Tokens under other names: in every file, the same ids for any text, and what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.renamed import WITH_WORDS
from support.tokenizer_sources import bpe, bpe_legacy, llama, wordlevel, wordpiece, write

from graftkit.checkpoint.tokenizer import Renaming, read_tokenizer, rename_tokens
from graftkit.errors import InputRejected, RecipeError

LONGER = "{% for m in messages %}<|old|>{{ m.content }}</s><|old|>x<<|old|>>{% endfor %}"


def renamed(documents, names, special=None):
    changed, _ = rename_tokens(documents, [Renaming(old, new, special) for old, new in names.items()])
    return {**documents, **changed}


#: Made once: the trainers of Unigram and WordPiece make another vocabulary each time.
DOCUMENTS = {make: make() for make in WITH_WORDS}


def strings(value):
    """Every text of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(item)
    yield from value if isinstance(value, dict) else ()


@pytest.mark.parametrize("make", WITH_WORDS, ids=lambda make: make.__name__)
def test_no_file_names_the_old_token_and_every_id_stays(make):
    documents, names = DOCUMENTS[make], WITH_WORDS[make]
    untouched = json.dumps(documents)
    before, result = read_tokenizer(documents), renamed(documents, names)
    after = read_tokenizer(result)
    assert names.keys().isdisjoint(strings(result))
    assert after.ids == {names.get(token, token): index for token, index in before.ids.items()}
    assert after.special == {role: names.get(token, token) for role, token in before.special.items()}
    for name in ("config.json", "generation_config.json"):
        assert result.get(name) == documents.get(name)
    assert json.dumps(documents) == untouched


@pytest.mark.parametrize("make", WITH_WORDS, ids=lambda make: make.__name__)
def test_transformers_loads_the_old_ids_under_the_new_names(make, tmp_path):
    from transformers import AutoTokenizer

    documents, names = DOCUMENTS[make], WITH_WORDS[make]
    before, after = (
        AutoTokenizer.from_pretrained(write(each, tmp_path / place))
        for place, each in (("before", documents), ("after", renamed(documents, names)))
    )
    assert after.get_vocab() == {names.get(token, token): index for token, index in before.get_vocab().items()}
    assert {*after.all_special_tokens} == {names.get(token, token) for token in before.all_special_tokens}
    for text in ("the cat {} sat", "{}{}", "x{}y"):
        was, now = (
            loaded(text.replace("{}", name))["input_ids"]
            for loaded, name in zip((before, after), next(iter(names.items())), strict=True)
        )
        assert was == now


@pytest.mark.parametrize("make", WITH_WORDS, ids=lambda make: make.__name__)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_any_text_reads_as_before(make, parts):
    """Without a renamed token to the same ids; and with one under its new name to those that it had under the old."""
    (before, after), names = TOKENIZERS[make], WITH_WORDS[make]
    if any(name in part for part in parts for name in (*names, *names.values())):
        return
    assert before.encode(" ".join(parts)) == after.encode(" ".join(parts))
    for old, new in names.items():
        assert before.encode(old.join(parts)) == after.encode(new.join(parts))


TOKENIZERS = {
    make: tuple(map(read_tokenizer, (DOCUMENTS[make], renamed(DOCUMENTS[make], names))))
    for make, names in WITH_WORDS.items()
}


def test_a_piece_of_the_model_s_vocabulary_becomes_a_token_that_is_found_in_text():
    documents = wordpiece()
    vocab = documents["tokenizer.json"]["model"]["vocab"]
    vocab["[unused1]"] = index = len(vocab)
    for special in (False, True):
        result = renamed(documents, {"[unused1]": "<tool>"}, special)
        after = read_tokenizer(result)
        assert after.encode("the<tool>cat").count(index) == 1
        assert after.encode("the [unused1] cat").count(index) == 0
        entry = next(item for item in result["tokenizer.json"]["added_tokens"] if item["id"] == index)
        assert entry["special"] == special
        further = result["tokenizer_config.json"].get("additional_special_tokens", [])
        assert ("<tool>" in further) == special


def test_a_token_is_made_special_or_plain_where_that_is_asked():
    plain = renamed(bpe_legacy(), {"<|old|>": "<|new|>"}, special=False)
    assert plain["tokenizer_config.json"]["additional_special_tokens"] == []
    assert plain["special_tokens_map.json"]["additional_special_tokens"] == []
    again = renamed(plain, {"<|new|>": "<|newer|>"}, special=True)
    assert again["tokenizer_config.json"]["additional_special_tokens"] == ["<|newer|>"]
    assert again["special_tokens_map.json"]["additional_special_tokens"] == ["<|newer|>"]
    index = str(read_tokenizer(again).id_of("<|newer|>"))
    assert again["tokenizer_config.json"]["added_tokens_decoder"][index]["special"] is True


def test_templates_processors_and_stop_strings_follow():
    documents = bpe_legacy() | {"chat_template.jinja": LONGER, "chat_template.json": {"chat_template": LONGER}}
    documents["tokenizer_config.json"]["chat_template"] = [{"name": "default", "template": LONGER}]
    documents["processor_config.json"] = {"image_token": "<|old|>", "processor_class": "<|old|>"}
    documents["generation_config.json"] = {"stop_strings": ["<|old|>", "x"], "eos_token_id": 1}
    entry = {**documents["tokenizer.json"]["added_tokens"][-1], "id": 395, "content": "<<|old|>>"}
    documents["tokenizer.json"]["added_tokens"].append(entry)
    result = renamed(documents, {"<|old|>": "<|new|>"})
    wanted = "{% for m in messages %}<|new|>{{ m.content }}</s><|new|>x<<|old|>>{% endfor %}"
    assert result["chat_template.jinja"] == wanted == result["chat_template.json"]["chat_template"]
    assert result["tokenizer_config.json"]["chat_template"] == [{"name": "default", "template": wanted}]
    assert result["processor_config.json"] == {"image_token": "<|new|>", "processor_class": "<|old|>"}
    assert result["generation_config.json"] == {"stop_strings": ["<|new|>", "x"], "eos_token_id": 1}


def test_padding_decoder_and_the_unknown_token_follow():
    documents = wordlevel()
    document = documents["tokenizer.json"]
    document["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1,
                           "pad_type_id": 0, "pad_token": "<eos>"}  # fmt: skip
    document["decoder"] = {"type": "CTC", "pad_token": "<eos>", "word_delimiter_token": "|", "cleanup": True}
    result = renamed(documents, {"<eos>": "<end>", "<unk>": "<?>"})["tokenizer.json"]
    assert (result["padding"]["pad_token"], result["padding"]["pad_id"]) == ("<end>", 1)
    assert result["decoder"]["pad_token"] == "<end>"
    assert result["model"]["unk_token"] == "<?>"


REFUSED = {
    "absent, with the nearest": (bpe, {"<|olb|>": "<|x|>"}, None, r"no token '<\|olb\|>'; did you mean '<\|old\|>'"),
    "taken": (bpe, {"<|old|>": "</s>"}, None, "has a token '</s>' already, with id 1"),
    "part of a merge": (bpe, {"cat": "<|x|>"}, None, "'cat' is part of a merge"),
    "a symbol": (bpe, {"!": "<|x|>"}, None, "'!' is one of the symbols"),
    "a byte": (llama, {"<0x41>": "<|x|>"}, None, "'<0x41>' stands for a byte"),
    "a role made plain": (bpe, {"</s>": "<|x|>"}, False, "'</s>' is the eos_token, which is always special"),
    "a role with a space": (bpe, {"</s>": "the end"}, None, "a name with a space cannot stand"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_renamed_is_refused_with_its_reason(case):
    make, names, special, message = REFUSED[case]
    with pytest.raises(RecipeError, match=message) as caught:
        renamed(make(), names, special)
    assert caught.value.fields == [f"names.{name}" for name in names]


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(RecipeError) as caught:
        renamed(bpe(), {"<|olb|>": "<|x|>", "<|old|>": "</s>", "cat": "<|y|>"})
    assert len(caught.value.problems) == 3


def test_a_name_that_text_would_not_be_read_as_is_refused():
    with pytest.raises(InputRejected, match="would be decoded as"):
        renamed(bpe(), {"<|old|>": "Größe"})
    with pytest.raises(InputRejected, match="exists already: it is read as"):
        documents = bpe()
        documents["tokenizer.json"]["added_tokens"][-1]["normalized"] = True
        renamed(documents, {"<|old|>": " category"})


def test_what_does_not_change_is_not_returned():
    changed, _ = rename_tokens(bpe(), [Renaming("<|old|>", "<|new|>")])
    assert changed.keys() == {"tokenizer.json", "tokenizer_config.json"}
