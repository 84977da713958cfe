"""Each fault is planted into a tiny checkpoint that opens without it; each is one line that names file and place."""

import json
import os
import pickle

import numpy as np
import pytest
from open_support import CONFIG, SHARDS, digest, entry, make_sharded, make_single, raw_file, write_index, write_json
from safetensors.numpy import save_file

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import MAX_DOCUMENT_BYTES
from graftkit.errors import InputRejected

INDEX = "model.safetensors.index.json"
FIRST, LAST = SHARDS
MAP = {name: shard for shard, names in SHARDS.items() for name in names}


def rejected(folder):
    before = digest(folder)
    with pytest.raises(InputRejected) as caught:
        dict(Checkpoint.open(str(folder)).documents)
    assert digest(folder) == before
    message = str(caught.value)
    assert message.isprintable(), "an error is one line without control characters"
    assert message.startswith(f"{folder}: "), "an error names the checkpoint"
    return message.removeprefix(f"{folder}: ")


@pytest.fixture
def single(tmp_path):
    folder = make_single(tmp_path / "model")
    Checkpoint.open(str(folder))
    return folder


@pytest.fixture
def sharded(tmp_path):
    folder = make_sharded(tmp_path / "model")
    Checkpoint.open(str(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x.safetensors", "is not the plain name of a file beside the index"),
        ("/etc/passwd", "is not the plain name of a file beside the index"),
        ("sub/x.safetensors", "is not the plain name of a file beside the index"),
        ("a\0.safetensors", "is not the plain name of a file beside the index"),
        ("..", "is not the plain name of a file beside the index"),
        ("", "is not the plain name of a file beside the index"),
        (7, "is not the plain name of a file beside the index"),
        (None, "is not the plain name of a file beside the index"),
        ("evil.bin", "is not a safetensors file"),
    ],
)
def test_names_in_the_index(sharded, name, message):
    # transformers follows ../x and absolute paths, and unpickles a shard that does not end in .safetensors.
    write_index(sharded, {**MAP, "lm_head.weight": name})
    found = rejected(sharded)
    assert found.startswith(f"{INDEX}: weight_map: 'lm_head.weight': ")
    assert message in found


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "has no weight_map object"),
        ({"metadata": {}}, "has no weight_map object"),
        ({"metadata": {}, "weight_map": [["a", "b"]]}, "has no weight_map object"),
        ({"metadata": {}, "weight_map": {}}, "has no weight_map object"),
        ({"weight_map": MAP}, "has no metadata object"),
        ({"metadata": None, "weight_map": MAP}, "has no metadata object"),
    ],
)
def test_malformed_indexes(sharded, index, message):
    # transformers raises KeyError, AttributeError or TypeError.
    write_json(sharded / INDEX, index)
    assert rejected(sharded).startswith(f"{INDEX}: {message}")


def test_an_index_with_a_tensor_twice(sharded):
    (sharded / INDEX).write_text(f'{{"metadata": {{}}, "weight_map": {{"a": "{FIRST}", "a": "{LAST}"}}}}')
    assert rejected(sharded) == f"{INDEX}: the key 'a' stands twice in one object"


def test_an_index_that_is_not_json(sharded):
    (sharded / INDEX).write_text('{\n"weight_map": {,}}')
    assert rejected(sharded).startswith(f"{INDEX}:2:16: is not JSON: ")


def test_a_shard_that_is_missing(sharded):
    (sharded / LAST).unlink()
    assert rejected(sharded) == f"{LAST}: is missing, or a link to nothing"


def test_a_tensor_that_is_in_no_shard(sharded):
    write_index(sharded, {**MAP, "extra": LAST})
    assert rejected(sharded) == f"{INDEX}: weight_map: 'extra': is not in {LAST}: it is in no shard"


def test_a_tensor_in_another_shard_than_the_index_says(sharded):
    write_index(sharded, {**MAP, "model.norm.weight": LAST})
    assert rejected(sharded) == f"{INDEX}: weight_map: 'model.norm.weight': is not in {LAST}: it is in {FIRST}"


def test_a_tensor_that_the_index_does_not_name(sharded):
    # transformers loads it all the same.
    write_index(sharded, {name: shard for name, shard in MAP.items() if name != "model.norm.weight"})
    assert rejected(sharded) == f"{FIRST}: tensor 'model.norm.weight': is not in the weight_map of {INDEX}"


def test_a_tensor_in_two_shards(sharded):
    # In transformers the last file wins, silently.
    save_file({"lm_head.weight": np.zeros(1), "model.norm.weight": np.zeros(1)}, sharded / LAST)
    assert rejected(sharded) == f"{LAST}: tensor 'model.norm.weight': stands in {FIRST} too"


def test_a_truncated_and_an_empty_shard(sharded):
    whole = (sharded / LAST).read_bytes()
    (sharded / LAST).write_bytes(whole[:-1])
    assert rejected(sharded).startswith(
        f"{LAST}: is truncated: the header describes 96 bytes of data, the file holds 95"
    )
    (sharded / LAST).write_bytes(b"")
    assert rejected(sharded).startswith(f"{LAST}: is truncated or no safetensors file")


def test_a_fault_in_a_header_names_the_shard_and_the_tensor(sharded):
    (sharded / LAST).write_bytes(raw_file({"lm_head.weight": entry("F99")}, bytes(4)))
    assert rejected(sharded) == f"{LAST}: tensor 'lm_head.weight': unknown dtype 'F99'"


def test_a_file_without_tensors(single):
    (single / "model.safetensors").write_bytes(raw_file({}))
    assert rejected(single) == "model.safetensors: holds no tensors"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer_config.json", "vocab.txt", "modules.json"]
)
def test_a_fifo_in_place_of_any_file(single, name):
    # transformers hangs.
    (single / name).unlink(missing_ok=True)
    os.mkfifo(single / name)
    assert rejected(single) == f"{name}: is not a regular file"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json", "vocab.txt"])
def test_a_link_that_leaves_the_folder(single, name):
    # transformers follows it; so does whoever copies the output.
    outside = single.parent / "secret"
    outside.write_bytes((single / name).read_bytes() if (single / name).exists() else b"secret")
    (single / name).unlink(missing_ok=True)
    (single / name).symlink_to("../secret")
    assert rejected(single) == f"{name}: is a link that leaves the checkpoint, to {outside}; put a copy in its place"


def test_a_link_out_of_a_sibling_snapshot_is_refused(tmp_path):
    # A snapshot may use the blobs of its own repository, not those of another.
    folder = make_single(tmp_path / "models--a--b" / "snapshots" / "1")
    other = tmp_path / "models--c--d" / "blobs" / "1"
    other.parent.mkdir(parents=True)
    (folder / "config.json").rename(other)
    (folder / "config.json").symlink_to(other)
    assert rejected(folder).startswith("config.json: is a link that leaves the checkpoint")


def test_links_in_a_circle_and_to_nothing(single):
    (single / "vocab.txt").symlink_to("vocab.txt")
    assert rejected(single) == "vocab.txt: is a symbolic link that cannot be followed"
    (single / "vocab.txt").unlink()
    (single / "vocab.txt").symlink_to("nothing")
    assert rejected(single) == "vocab.txt: is missing, or a link to nothing"


def test_a_link_among_what_stays_behind_is_not_looked_at(single):
    (single / "pytorch_model.bin").symlink_to("/nowhere")
    (single / "onnx").symlink_to("/")
    assert set(Checkpoint.open(str(single)).left_behind) == {"pytorch_model.bin", "onnx/"}


@pytest.mark.parametrize("path", ["../x", "/etc", "a/../../b", 7, None])
def test_folders_in_modules_json(single, path):
    write_json(single / "modules.json", [{"path": ""}, {"path": path}])
    assert rejected(single) == f"modules.json: 1.path: '{path}' is not a folder below this one"


def test_modules_that_are_no_list(single):
    write_json(single / "modules.json", {"path": "1_Pooling"})
    assert rejected(single) == "modules.json: is not a list of modules"


def test_a_module_folder_that_is_a_link(single):
    write_json(single / "modules.json", [{"path": "1_Pooling"}])
    (single / "1_Pooling").symlink_to("/")
    assert rejected(single) == "1_Pooling: is a link to a folder; put a copy in its place"


def test_a_link_inside_a_module_folder(single):
    write_json(single / "modules.json", [{"path": "1_Pooling"}])
    (single / "1_Pooling").mkdir()
    (single / "1_Pooling" / "deep").symlink_to("/")
    assert rejected(single).startswith("1_Pooling/deep: is a link that leaves the checkpoint")


def test_pickle_weights_say_how_to_convert(single):
    (single / "model.safetensors").unlink()
    (single / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    message = rejected(single)
    assert message.startswith("pytorch_model.bin: is a pickle, which can run code when read")
    assert f"transformers.LlamaForCausalLM.from_pretrained('{single}').save_pretrained(...)" in message


def test_the_pickle_that_is_named_is_the_model_s_and_no_head_or_state(single):
    (single / "model.safetensors").unlink()
    for name in ("classifier.pkl", "a_head.pt", "optimizer.pt", "pytorch_model.bin"):
        (single / name).write_bytes(b"x")
    assert rejected(single).startswith("pytorch_model.bin: is a pickle")


def test_no_weights_at_all(single):
    (single / "model.safetensors").unlink()
    assert rejected(single).startswith(f"has neither model.safetensors nor {INDEX}")


def test_weights_under_a_name_of_their_own(single):
    write_json(single / "config.json", {**CONFIG, "transformers_weights": "other.safetensors"})
    assert rejected(single).startswith("config.json: transformers_weights: names 'other.safetensors'; rename")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice in one object"),
        (b'{"a": {"\x1b": 1, "\x1b": 2}}', "is not JSON: Invalid control character at"),
        (b'{"a": {"\\u001b": 1, "\\u001b": 2}}', "the key '\\x1b' stands twice in one object"),
        (b"{", "is not JSON: Expecting property name enclosed in double quotes"),
        (b"", "is not JSON: Expecting value"),
        (b'"\xff"', "is not UTF-8 text at byte 1"),
        (b"\xef\xbb\xbf{}", "is not JSON: Unexpected UTF-8 BOM"),
        (b"[" * 70 + b"]" * 70, "is nested more than 64 levels deep"),
        (b"[" * 100_000 + b"]" * 100_000, "is nested more than 64 levels deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    ],
)
def test_malformed_documents(single, name, raw, message):
    (single / name).write_bytes(raw)
    found = rejected(single)
    assert found.startswith(f"{name}:")
    assert message in found


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "README.md"])
def test_documents_over_the_bound(single, name):
    with (single / name).open("wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    assert rejected(single).startswith(f"{name}: is larger than {MAX_DOCUMENT_BYTES} bytes")


def test_a_text_that_is_not_utf8(single):
    (single / "chat_template.jinja").write_bytes(b"{{ \xe9 }}")
    assert rejected(single) == "chat_template.jinja: is not UTF-8 text at byte 3"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "config.json: is not a JSON object"),
        ("text", "config.json: is not a JSON object"),
        ({}, "config.json: has no model_type"),
        ({"model_type": 7}, "config.json: has no model_type"),
        ({**CONFIG, "architectures": "LlamaForCausalLM"}, "config.json: architectures: is not a list of class names"),
        ({**CONFIG, "architectures": ["os.system('x')"]}, "config.json: architectures: is not a list of class names"),
    ],
)
def test_configs_that_are_none(single, config, message):
    write_json(single / "config.json", config)
    assert rejected(single).startswith(message)


def test_no_config(single):
    (single / "config.json").unlink()
    assert rejected(single) == "config.json: is missing, or a link to nothing"


KERNEL = "evil/kernel"


@pytest.mark.parametrize(
    ("extra", "place"),
    [
        ({"_attn_implementation_internal": KERNEL}, "_attn_implementation_internal"),  # CVE-2026-4372
        ({"_attn_implementation": KERNEL}, "_attn_implementation"),
        ({"attn_implementation": KERNEL}, "attn_implementation"),
        ({"attn_implementation": {"": "sdpa", "text_config": KERNEL}}, "attn_implementation"),
        ({"text_config": {"attn_implementation": f"paged|{KERNEL}@v1:fn"}}, "text_config.attn_implementation"),
        ({"a": [{"_experts_implementation": KERNEL}]}, "a.0._experts_implementation"),
        ({"experts_implementation": "kernel:fn"}, "experts_implementation"),
        ({"__dict__": {"_attn_implementation_internal": KERNEL}}, "__dict__._attn_implementation_internal"),
        # setattr goes through attribute_map, so this reaches the attribute that transformers 5.23 guards by its name.
        ({"attribute_map": {"x": "_attn_implementation_internal"}, "x": KERNEL}, "attribute_map"),
    ],
)
def test_config_keys_that_select_code(single, extra, place):
    write_json(single / "config.json", {**CONFIG, **extra})
    message = rejected(single)
    assert message.startswith(f"config.json: {place}: ")
    assert message.endswith("remove this key")


@pytest.mark.parametrize("value", [None, "sdpa", "eager", "flash_attention_2", {"": "eager"}])
def test_implementations_of_transformers_itself_are_fine(single, value):
    write_json(single / "config.json", {**CONFIG, "_attn_implementation": value})
    assert Checkpoint.open(str(single)).remote_code == ()


def test_remote_code_and_quantization_are_reported(single):
    auto_map = {"AutoModelForCausalLM": "modeling_x.X", "AutoTokenizer": ["tok.Slow", None]}
    quantized = {"quantization_config": {"quant_method": "gptq"}}
    write_json(single / "config.json", {**CONFIG, "auto_map": auto_map, "text_config": quantized})
    write_json(single / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tok.Slow", "org/repo--tok.Fast"]}})
    checkpoint = Checkpoint.open(str(single))
    assert checkpoint.remote_code == (
        "config.json: auto_map: modeling_x.X, tok.Slow",
        "tokenizer_config.json: auto_map: tok.Slow, org/repo--tok.Fast",
    )
    assert checkpoint.notes == ("config.json: text_config.quantization_config: gptq",)


def test_an_adapter_beside_the_weights(single):
    # transformers with peft installed loads it on top, from plain from_pretrained.
    write_json(single / "adapter_config.json", {"peft_type": "LORA"})
    assert rejected(single).startswith("adapter_config.json: stands beside the weights")


def test_escapes_in_names_do_not_reach_the_terminal(sharded):
    write_index(sharded, {**MAP, "\x1b[31mred\n": LAST})
    assert "\\x1b[31mred\\n" in rejected(sharded)


def test_errors_survive_json_of_any_kind(sharded):
    for index in (json.loads("null"), 1, "x", {"metadata": {}, "weight_map": {"a": {"b": []}}}):
        write_json(sharded / INDEX, index)
        assert rejected(sharded).startswith(f"{INDEX}: ")


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "encoder_layers"])
def test_more_layers_than_tensors(single, key):
    write_json(single / "config.json", {**CONFIG, "text_config": {key: 10**6}})
    assert f"config.json: text_config.{key} is 1000000" in rejected(single)


@pytest.mark.parametrize("key", ["max_window_layers", "global_attn_every_n_layers"])
def test_a_layer_that_is_named_and_a_distance_of_layers_may_lie_behind_the_last(single, key):
    write_json(single / "config.json", {**CONFIG, "text_config": {key: 10**6}})
    assert Checkpoint.open(str(single)).config["text_config"][key] == 10**6
