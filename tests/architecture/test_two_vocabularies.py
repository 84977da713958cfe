"""Encoder-decoders whose two sides have vocabularies of their own: refused with both sizes, and no other class is."""

import pytest
import transformers as t
from support.families import build

from graftkit import engine
from graftkit.architecture.embeddings import INPUT
from graftkit.architecture.governing import two_vocabularies
from graftkit.architecture.skeleton import build_skeleton
from graftkit.errors import InputRejected

SIDES = {f"{side}_{key}": value for side in ("encoder", "decoder")
         for key, value in (("layers", 1), ("ffn_dim", 64), ("attention_heads", 4))}  # fmt: skip
SMALL = {"d_model": 32, "max_position_embeddings": 64, "pad_token_id": 0, **SIDES}


def marian(decoder_rows, **fields):
    fields = {"share_encoder_decoder_embeddings": False, "decoder_start_token_id": 0, **fields}
    return t.MarianConfig(vocab_size=331, decoder_vocab_size=decoder_rows, **SMALL, **fields)


def bert(rows):
    return t.BertConfig(
        vocab_size=rows, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )


def found(config, architecture):
    values = {**config.to_dict(), "architectures": [architecture]}
    skeleton = build_skeleton(values)
    return two_vocabularies(values, skeleton, int(skeleton.embedding(INPUT).weight.shape[0]))


TWO = {
    "marian": (marian(317), "MarianMTModel", "vocab_size", "decoder_vocab_size"),
    "marian, no head": (marian(317), "MarianModel", "vocab_size", "decoder_vocab_size"),
    "marian, more in the decoder": (marian(353), "MarianMTModel", "vocab_size", "decoder_vocab_size"),
    "fsmt": (
        t.FSMTConfig(langs=["en", "de"], src_vocab_size=331, tgt_vocab_size=317, **SMALL),
        "FSMTForConditionalGeneration",
        "src_vocab_size",
        "tgt_vocab_size",
    ),
    "two BERTs": (
        t.EncoderDecoderConfig.from_encoder_decoder_configs(bert(331), bert(317)),
        "EncoderDecoderModel",
        "encoder.vocab_size",
        "decoder.vocab_size",
    ),
}


@pytest.mark.parametrize(("config", "architecture", "first", "second"), TWO.values(), ids=TWO)
def test_both_sizes_and_what_governs_them_are_said(config, architecture, first, second):
    other = 353 if getattr(config, "decoder_vocab_size", 0) == 353 else 317
    said = found(config, architecture)
    assert said is not None
    assert said.startswith("has two vocabularies: 331 rows in ")
    assert f" by config.json's {first}, and {other} in " in said
    assert f" by {second};" in said


ONE = {
    "shared": (marian(331, share_encoder_decoder_embeddings=True), "MarianMTModel"),
    "of one size": (marian(331), "MarianMTModel"),
    "bart": (t.BartConfig(vocab_size=331, **SMALL), "BartForConditionalGeneration"),
    "two equal BERTs": (
        t.EncoderDecoderConfig.from_encoder_decoder_configs(bert(331), bert(331)),
        "EncoderDecoderModel",
    ),
    "an encoder": (bert(331), "BertForMaskedLM"),
}


@pytest.mark.parametrize(("config", "architecture"), ONE.values(), ids=ONE)
def test_one_vocabulary_is_not_taken_for_two(config, architecture):
    assert found(config, architecture) is None


MEAN = {"op": "rename_tokens", "names": {"<unk>": "<tool>"}, "init": "mean"}
OPERATIONS = {
    "extend_vocab": {"op": "extend_vocab", "special_tokens": ["<|new|>"]},
    "learn_tokens": {"op": "learn_tokens", "texts": "texts.txt", "size": 2},
    "rename_tokens": MEAN,
    "reinit_rows": {"op": "reinit_rows", "tokens": ["<unk>"]},
    "trim_vocab": {"op": "trim_vocab", "keep": {"tokens": ["<unk>"]}},
    "transplant_tokenizer": {"op": "transplant_tokenizer", "donor": "other"},
}


@pytest.fixture(scope="module")
def two_sided(tmp_path_factory):
    """Folders of Marian models by class, whose decoder has 317 tokens and whose encoder has 331."""
    made = {}
    for architecture in ("MarianMTModel", "MarianModel"):
        source = made[architecture] = tmp_path_factory.mktemp(architecture) / "source"
        build("bert", source)  # for its tokenizer
        for file in ("config.json", "model.safetensors"):
            (source / file).unlink()
        getattr(t, architecture)(marian(317)).save_pretrained(source)
    return made


@pytest.mark.parametrize(
    ("architecture", "operation"),
    [("MarianModel", "extend_vocab"), *(("MarianMTModel", name) for name in OPERATIONS)],
)
def test_two_vocabularies_are_refused_by_both_sizes(architecture, operation, two_sided, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = two_sided[architecture]
    recipe = {"version": 1, "base_model": str(source), "operations": [OPERATIONS[operation]]}
    with pytest.raises(InputRejected, match=f"^{architecture}: has two vocabularies: 331 rows .* and 317 in "):
        engine.plan({**recipe, "output": str(tmp_path / "out")})


def test_a_name_is_changed_where_both_tables_stay_as_they_are(two_sided, tmp_path):
    renamed = {key: value for key, value in MEAN.items() if key != "init"}
    recipe = {"version": 1, "base_model": str(two_sided["MarianMTModel"]), "operations": [renamed]}
    planned = engine.plan({**recipe, "output": str(tmp_path / "out")})
    assert planned.vocabulary.renamed["<unk>"].content == "<tool>"
