"""Opening real tiny checkpoints: what is found, what is derived, what stays behind."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from open_support import CONFIG, SHARDS, digest, make_sharded, make_single, tensors, write_json
from safetensors.numpy import save_file

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import encode_document
from graftkit.checkpoint.tensors import Computed, FileRange
from graftkit.errors import InputRejected, RecipeError


def opened(folder):
    before = digest(folder)
    checkpoint = Checkpoint.open(str(folder))
    assert digest(folder) == before
    return checkpoint


def test_opens_a_single_file(tmp_path):
    folder = make_single(tmp_path / "model")
    checkpoint = opened(folder)
    assert (checkpoint.name, checkpoint.directory, checkpoint.revision) == (str(folder), folder, None)
    assert checkpoint.config == CONFIG
    assert checkpoint.shards == {"model.safetensors": tuple(checkpoint.tensors)}
    assert checkpoint.shard_metadata == {"model.safetensors": {"format": "pt"}}
    assert checkpoint.index is None
    assert set(checkpoint.documents) == {"config.json", "tokenizer_config.json"}
    assert (checkpoint.carried, checkpoint.left_behind) == ((), {})


def test_opens_shards_in_their_order(tmp_path):
    checkpoint = opened(make_sharded(tmp_path))
    assert {shard: set(names) for shard, names in checkpoint.shards.items()} == {
        shard: set(names) for shard, names in SHARDS.items()
    }
    assert list(checkpoint.shards) == sorted(SHARDS)
    assert list(checkpoint.tensors) == [name for names in checkpoint.shards.values() for name in names]
    assert checkpoint.index["metadata"] == {"total_size": 208}
    (segment,) = checkpoint.tensors["lm_head.weight"].segments()
    assert isinstance(segment, FileRange)
    raw = segment.path.read_bytes()[segment.offset : segment.offset + segment.nbytes]
    assert raw == tensors("lm_head.weight")["lm_head.weight"].tobytes()


def test_a_path_is_relative_to_the_current_folder(tmp_path, monkeypatch):
    folder = make_single(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint.open("model")
    assert (checkpoint.name, checkpoint.directory) == ("model", folder)


def test_a_local_folder_has_no_revision(tmp_path):
    make_single(tmp_path)
    with pytest.raises(RecipeError, match=r"^revision: .* is a local folder, which has none; remove the revision$"):
        Checkpoint.open(str(tmp_path), revision="main")


def test_documents_carried_and_left_behind(tmp_path):
    make_single(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}\n")
    (tmp_path / "README.md").write_text("# A model")
    for name in ("vocab.txt", "merges.txt", "tokenizer.model", "LICENSE", "modeling_x.py", "sentence_bert_config.json"):
        (tmp_path / name).write_text(name)
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense/"}, {"path": "3_Normalize"}]
    write_json(tmp_path / "modules.json", modules)
    for name in ("1_Pooling/config.json", "2_Dense/model.safetensors", "additional_chat_templates/rag.jinja"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    (tmp_path / "2_Dense/.DS_Store").touch()
    stale = [
        *("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.onnx", "m.gguf", "model.pt", "x.ot"),
        *("consolidated.00.PTH", "pytorch_model-00001-of-00002.bin", "pytorch_model.fp16.bin", "model.ckpt"),
        *("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin.index.json", ".gitattributes"),
        *("trainer_state.json", "graft_report.json"),
    ]  # fmt: skip
    for name in stale:
        (tmp_path / name).write_text(name)
    for name in ("onnx/model.onnx", "openvino/x.xml", "original/params.json", ".git/HEAD", ".cache/x", "runs/events"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    checkpoint = opened(tmp_path)
    assert list(checkpoint.documents) == ["config.json", "tokenizer_config.json", "chat_template.jinja", "README.md"]
    assert checkpoint.documents["chat_template.jinja"] == "{{ messages }}\n"
    assert set(checkpoint.carried) == {
        *("vocab.txt", "merges.txt", "tokenizer.model", "LICENSE", "modeling_x.py", "sentence_bert_config.json"),
        *("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "additional_chat_templates/rag.jinja"),
    }
    folders = ("onnx/", "openvino/", "original/", ".git/", ".cache/", "runs/", "2_Dense/.DS_Store")
    assert set(checkpoint.left_behind) == {*stale, *folders}
    assert checkpoint.left_behind["pytorch_model.bin"].endswith("stale in the output")
    assert all(checkpoint.left_behind.values())


HEADS = ("model_head.pkl", "head.pt", "value_head.bin", "classifier.joblib", "probe.npz", "regression_head.safetensors")


def test_trained_values_that_are_not_the_model_s_come_along_unread(tmp_path):
    """A pickle that would run code when it is read shows that none is."""
    make_single(tmp_path)
    for name in HEADS:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for name in ("value_head.safetensors", "regression_head.safetensors"):
        save_file({"v_head.summary.weight": np.zeros((1, 4))}, tmp_path / name)
    checkpoint = opened(tmp_path)
    assert set(checkpoint.carried) == set(HEADS)
    assert not checkpoint.left_behind
    assert checkpoint.value_head["v_head.summary.weight"].shape == (1, 4)


def test_a_value_head_that_cannot_be_read_is_refused_and_one_of_the_model_s_own_tensors_stays_behind(tmp_path):
    make_single(tmp_path)
    path = tmp_path / "value_head.safetensors"
    save_file({name: np.zeros(2) for name in opened(tmp_path).tensors}, path)
    assert opened(tmp_path).left_behind.keys() == {"value_head.safetensors"}
    save_file({}, path)
    with pytest.raises(InputRejected, match=r"value_head.safetensors: holds no tensors"):
        opened(tmp_path)
    path.write_bytes(b"no")
    with pytest.raises(InputRejected, match=r"value_head.safetensors: "):
        opened(tmp_path)


STATE = (
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_3.pth", "training_args.bin"),
    *("random_states_0.pkl", "trainer_state.json", "sampler.bin"),
)  # fmt: skip


def test_what_only_goes_on_with_a_training_stays_behind_as_that(tmp_path):
    make_single(tmp_path)
    for name in STATE:
        (tmp_path / name).write_bytes(b"x")
    assert opened(tmp_path).left_behind == dict.fromkeys(STATE, "the state of the training that made the source")


@pytest.mark.parametrize("tensors", [{"lm_head.weight": np.zeros(1)}, None], ids=["named as the model's", "malformed"])
def test_a_safetensors_file_with_tensors_of_the_model_stays_behind_however_it_is_called(tmp_path, tensors):
    make_single(tmp_path)
    (tmp_path / "ema.safetensors").write_bytes(b"x")
    if tensors:
        save_file(tensors, tmp_path / "ema.safetensors")
    assert "does not load" in opened(tmp_path).left_behind["ema.safetensors"]


def test_a_single_file_wins_over_an_index_as_in_transformers(tmp_path):
    make_sharded(tmp_path)
    save_file({"only": np.zeros(1)}, tmp_path / "model.safetensors")
    checkpoint = opened(tmp_path)
    assert list(checkpoint.tensors) == ["only"]
    assert checkpoint.index is None
    assert set(checkpoint.left_behind) == {*SHARDS, "model.safetensors.index.json"}


def test_a_shard_that_the_index_does_not_name_stays_behind(tmp_path):
    make_sharded(tmp_path)
    save_file({"old": np.zeros(1)}, tmp_path / "model-00003-of-00003.safetensors")
    assert "does not load" in opened(tmp_path).left_behind["model-00003-of-00003.safetensors"]


def test_derived_checkpoints_leave_the_source_alone(tmp_path):
    source = opened(make_sharded(tmp_path))
    new = Computed("F32", (1,), lambda: memoryview(bytes(4)))
    result = source.with_tensors({"new": new, "model.norm.weight": None, "lm_head.weight": new})
    first, last = SHARDS
    assert result.shards == {first: ("model.embed_tokens.weight",), last: ("lm_head.weight", "new")}
    assert list(result.tensors) == ["model.embed_tokens.weight", "lm_head.weight", "new"]
    assert result.tensors["model.embed_tokens.weight"] is source.tensors["model.embed_tokens.weight"]
    assert "model.norm.weight" in source.tensors
    assert source.with_tensors({"new": new}, shard=first).shards[first][-1] == "new"
    without = source.with_tensors({"lm_head.weight": None})
    assert list(without.shards) == list(without.shard_metadata) == [first]
    with pytest.raises(KeyError, match="absent"):
        source.with_tensors({"absent": None})
    with pytest.raises(KeyError, match="no such shard"):
        source.with_tensors({"new": new}, shard="no such shard")


def test_documents_are_added_replaced_and_removed(tmp_path):
    make_single(tmp_path)
    (tmp_path / "vocab.txt").write_text("a")
    source = opened(tmp_path)
    changes = {"config.json": {"model_type": "x"}, "tokenizer_config.json": None, "vocab.txt": "b", "README.md": "hi"}
    result = source.with_documents(changes)
    assert result.documents == {"config.json": {"model_type": "x"}, "vocab.txt": "b", "README.md": "hi"}
    assert result.carried == ()
    assert source.config == CONFIG
    assert source.with_documents({"README.md": "hi"}).config is source.config


def test_json_keeps_what_it_holds(tmp_path):
    make_single(tmp_path)
    text = json.dumps({**CONFIG, "limit": {"__float__": "Infinity"}, "nan": math.nan, "inf": -math.inf, "eps": 1e-05})
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "emoji": "\u2581é", "half": "\\ud83d"}')
    checkpoint = opened(tmp_path)
    assert checkpoint.config["limit"] == {"__float__": "Infinity"}
    encoded = encode_document(checkpoint.config).decode()
    assert '"nan": NaN' in encoded
    assert '"inf": -Infinity' in encoded
    assert '"eps": 1e-05' in encoded
    assert encoded == json.dumps(json.loads(text), indent=2) + "\n"
    half = encode_document(checkpoint.documents["tokenizer_config.json"])
    assert json.loads(half) == checkpoint.documents["tokenizer_config.json"]
    assert encode_document({"emoji": "\u2581"}) == '{\n  "emoji": "\u2581"\n}\n'.encode()
    assert encode_document("text as it is") == b"text as it is"


def test_links_inside_the_folder_are_followed(tmp_path):
    make_single(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    (tmp_path / "model.safetensors").symlink_to("weights.safetensors")
    checkpoint = opened(tmp_path)
    assert checkpoint.path_of("model.safetensors") == tmp_path / "weights.safetensors"
    assert checkpoint.tensors["lm_head.weight"].path == tmp_path / "weights.safetensors"


def test_a_link_to_the_folder_itself_is_followed(tmp_path):
    folder = make_single(tmp_path / "model")
    (tmp_path / "latest").symlink_to("model")
    assert Checkpoint.open(str(tmp_path / "latest")).directory == folder


def test_a_file_that_vanishes_later_is_named(tmp_path):
    checkpoint = opened(make_single(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputRejected, match=r"^model.safetensors: is missing"):
        checkpoint.path_of("model.safetensors")


def test_opening_imports_neither_torch_nor_transformers(tmp_path):
    make_single(tmp_path)
    code = (
        "import sys; from graftkit.checkpoint.checkpoint import Checkpoint; Checkpoint.open(sys.argv[1]); "
        "print({'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "set()"


def test_the_tokenizer_is_read_when_it_is_asked_for_and_once(tmp_path):
    make_single(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    checkpoint = Checkpoint.open(str(tmp_path))
    assert "tokenizer.json" in checkpoint.documents
    with pytest.raises(InputRejected, match=f"{tmp_path}: tokenizer.json:1:2: is not JSON"):
        checkpoint.documents["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    first = checkpoint.documents["tokenizer.json"]
    assert first == {"model": {}}
    (tmp_path / "tokenizer.json").unlink()
    assert checkpoint.with_documents({"README.md": "hi"}).documents["tokenizer.json"] is first
    with pytest.raises(KeyError):
        checkpoint.documents["vocab.txt"]
