"""merge_adapter says what the tokenizer beside the adapter has otherwise, and the operations it names give the adapter's ids."""

import json
import shutil

import pytest
import transformers
from support.adapters import make_adapter
from support.families import TOKENS, build
from support.recipes import applied, recipe
from tokenizers import AddedToken

import graftkit

NOTES = [AddedToken("<note>", normalized=False), AddedToken("</note>", normalized=False)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    config = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    return make_adapter(tmp_path_factory.mktemp("adapter"), "LlamaForCausalLM", base=base, **config)[1]


@pytest.fixture
def adapter(base, plain, tmp_path):
    """The adapter with a tokenizer beside it that is the base's with these tokens added, as a training saves it."""

    def make(*added):
        folder = shutil.copytree(plain, tmp_path / "adapter")
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        for tokens, special in added:
            tokenizer.add_tokens(tokens, special_tokens=special)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def merge(adapter):
    return {"op": "merge_adapter", "adapter": str(adapter)}


def notes(base, adapter, tmp_path, *before):
    """What the plan says of the tokenizer beside the adapter."""
    plan = graftkit.plan(recipe(base, tmp_path / "never", *before, merge(adapter)))
    return [note for note in plan.outcomes[-1].notes if "tokenizer" in note or "merge_adapter" in note]


def operations(note):
    """The operations that a note names, read as the recipe would hold them."""
    return json.loads(f"[{note.partition('put before merge_adapter: ')[2]}]")


SAID = "'<note>' (320), '</note>' (321); the output keeps the base's tokenizer, which splits them"


def test_tokens_that_the_base_lacks_are_named_in_plan_and_report(base, adapter, tmp_path):
    folder = adapter((NOTES, False))
    found = notes(base, folder, tmp_path)
    assert found == [
        f"the adapter's tokenizer has 2 tokens that the base's lacks: {SAID}",
        'for the adapter\'s ids 320 to 321, put before merge_adapter: {"op": "extend_vocab", "tokens": [{"content": "<note>",'
        ' "normalized": false}, {"content": "</note>", "normalized": false}]}',
    ]
    output, report = applied(base, tmp_path / "run", merge(folder))
    assert set(found) <= set(report["notes"])
    assert len(transformers.AutoTokenizer.from_pretrained(output).encode("<note>")) > 1


def test_one_token_is_one(base, adapter, tmp_path):
    found = notes(base, adapter((NOTES[:1], False)), tmp_path)
    assert "has 1 token that the base's lacks: '<note>' (320); the output keeps" in found[0]
    assert found[0].endswith("splits it")
    assert "for the adapter's id 320, put" in found[1]


ADDED = {
    "plain": [(NOTES, False)],
    "special first, then plain": [(["<|a|>"], True), (["zqx", AddedToken("yqz", single_word=True, lstrip=True)], False)],
    "in turns": [(["zqx"], False), (["<|a|>", AddedToken("<|b|>", rstrip=True, normalized=True)], True), (["zqy"], False)],
}  # fmt: skip


@pytest.mark.parametrize("added", ADDED)
def test_the_operations_that_are_named_give_the_adapter_s_ids(base, adapter, added, tmp_path):
    folder = adapter(*ADDED[added])
    *_, remedy = notes(base, folder, tmp_path)
    named = operations(remedy)
    output, _ = applied(base, tmp_path / "run", *named, merge(folder))
    found, wanted = (transformers.AutoTokenizer.from_pretrained(place) for place in (output, folder))
    assert found.get_vocab() == wanted.get_vocab()
    assert repr(found.added_tokens_decoder) == repr(wanted.added_tokens_decoder)
    assert not notes(base, folder, tmp_path, *named)


def test_the_base_s_own_tokenizer_or_none_is_no_word(base, plain, adapter, tmp_path):
    assert not notes(base, plain, tmp_path)
    assert not notes(base, adapter(), tmp_path)


def test_tokens_with_other_ids_are_named_and_have_no_remedy_by_counting(base, adapter, tmp_path):
    folder = adapter((NOTES, False))
    before = {"op": "extend_vocab", "tokens": ["</note>"]}
    found = notes(base, folder, tmp_path, before)
    assert found[0].startswith(
        "1 token has another id in the adapter's tokenizer than in the base's: '</note>' (321, here 320); the adapter was"
    )
    assert "lacks: '<note>' (320); the output keeps" in found[1]
    assert "extend_vocab would count from 321, so it cannot give them the adapter's id 320" in found[2]


def test_tokens_of_the_adapter_s_own_vocabulary_cannot_be_added(base, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "adapter")
    document = json.loads((base / "tokenizer.json").read_text())
    document["model"]["vocab"]["qqq"] = TOKENS
    (folder / "tokenizer.json").write_text(json.dumps(document))
    found = notes(base, folder, tmp_path)
    assert "has 1 token that the base's lacks: 'qqq' (320)" in found[0]
    assert "extend_vocab cannot make them the same" in found[1]


def test_added_tokens_beside_a_slow_tokenizer_count(base, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "adapter")
    (folder / "added_tokens.json").write_text(json.dumps({"<note>": TOKENS}))
    assert "has 1 token that the base's lacks: '<note>' (320)" in notes(base, folder, tmp_path)[0]


def test_a_damaged_tokenizer_beside_the_adapter_stops_nothing_and_is_said(base, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "adapter")
    (folder / "tokenizer.json").write_text("{")
    (note,) = notes(base, folder, tmp_path)
    assert note.startswith(
        "the tokenizer beside the adapter was not compared with the base's: tokenizer.json:1:2: is not JSON"
    )
