"""Every byte of an output stands in its report, and `verify A B` names what differs from it."""

import json
import random
import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.command import here
from support.families import build
from support.recipes import recipe

import graftkit
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.cli import run
from graftkit.compare import verify
from graftkit.report.manifest import SEAL, account_for
from graftkit.report.page import write_page

EXTEND = {"op": "extend_vocab", "tokens": ["coroutine"], "special_tokens": ["<|tool|>"]}
LORA = {"op": "add_lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
QUICK = {"verify": {"outputs": False}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, and an output with a grown base and an adapter."""
    place = tmp_path_factory.mktemp("made")
    source = build("llama", place / "source", shard_size="60KB")
    (source / "notes.txt").write_text("carried along\n")
    graftkit.apply(recipe(source, place / "out", EXTEND, LORA, **QUICK))
    return source, place / "out"


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "copy")
    return tmp_path / "copy"


def report_of(copy):
    return account_for(Checkpoint.open(str(copy))).failures


def flip(path, at=0.5):
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * at)] ^= 1
    path.write_bytes(raw)


def test_the_report_names_every_file(made):
    _, out = made
    report = json.loads((out / "graft_report.json").read_text())
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {entry["name"] for entry in report["files"]} == there - {"graft_report.json"}
    assert {entry["covers"] for entry in report["files"]} == {"file", "header"}
    assert list(report)[-1] == SEAL
    found = account_for(Checkpoint.open(str(out)))
    assert (found.failures, found.notes) == ((), ())
    assert found.figure.endswith("files as written")


def names(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


@pytest.mark.slow
def test_single_bits_anywhere_are_told_with_the_file_s_name(made, tmp_path):
    """Through the command: the file that was damaged is named, whatever the bit made of it."""
    source, out = made
    dice = random.Random(0)
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for name in names(out) * 6:
        raw = bytearray((out / name).read_bytes())
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        (copy / name).write_bytes(raw)
        done = here("verify", source, copy, "--no-outputs")
        assert done.returncode in (3, 4), (name, done.stdout)
        assert len(done.stderr.splitlines()) == (done.returncode == 3)
        said = done.stdout + done.stderr
        assert name in said or (name.endswith(".safetensors") and "tensor '" in said), (name, said)
        (copy / name).write_bytes((out / name).read_bytes())
    assert here("verify", source, copy, "--no-outputs").returncode == 0


def test_one_bit_of_any_file_is_named(made, tmp_path):
    """At its end, where a weight file has values; a document that is not JSON any more is refused when it is opened."""
    source, out = made
    for index, name in enumerate(names(out)):
        copy = tmp_path / str(index)
        shutil.copytree(out, copy)
        if name.endswith(".json") and name != "graft_report.json":
            (copy / name).write_text((copy / name).read_text() + "\n")
        else:
            flip(copy / name, 0.999)
        (said,) = verify(str(source), str(copy), outputs=False).found["report"]
        assert name in said or "tensor 'model." in said or "tensor 'lm_head" in said, said
        shutil.rmtree(copy)
    assert index > 10


def test_a_file_that_is_gone_and_one_that_is_new_are_named(copy):
    (copy / "notes.txt").unlink()
    (copy / "README.md").unlink()
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert report_of(copy) == (
        "report: README.md was written and is gone",
        "report: notes.txt was written and is gone",
        "report: chat_template.jinja was not written by that run; remove it",
    )


def test_weights_in_another_format_and_hidden_files_beside_it_are_nobodys_fault(copy):
    (copy / "model.gguf").write_bytes(b"GGUF")
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert report_of(copy) == ()


def test_other_metadata_is_named(copy):
    shard = next(copy.glob("model-*.safetensors"))
    save_file(load_file(shard), shard, {"format": "pt", "more": "1"})
    assert report_of(copy) == (
        f"report: {shard.name}: its __metadata__ is not what was written: {{'format': 'pt', 'more': '1'}}",
    )


def test_the_same_tensors_in_one_file_are_written_again(copy, made):
    tensors = {}
    for shard in copy.glob("model-*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (copy / "model.safetensors.index.json").unlink()
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    found = verify(str(made[0]), str(copy), outputs=False)
    assert found.failures == ()
    assert found.notes[0] == "written again: the same tensors in other files"
    tensors["lm_head.weight"][-1] = 50.0
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert report_of(copy) == ("report: tensor 'lm_head.weight' is not what was written: its SHA-256 differs",)


def test_making_the_page_again_says_what_is_not_of_the_report(copy, capsys):
    (copy / "graft_report.html").unlink()
    assert run(["report", str(copy)]) == 0
    assert capsys.readouterr().err == ""
    (copy / "config.json").write_text("{}")
    assert run(["report", str(copy)]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("graft_report.html\n")
    assert said.err == "graftkit: the report is not of what lies there now; not as written: config.json\n"


def test_the_report_of_another_folder_is_noticed(copy, made):
    for shard in copy.glob("model-*.safetensors"):
        save_file({name: value + 1 for name, value in load_file(shard).items()}, shard, {"format": "pt"})
    (said,) = report_of(copy)
    assert "the graft_report.json beside B is not this folder's" in said
    assert said.endswith("move it away to verify without it")
    assert verify(str(made[0]), str(copy), outputs=False).accounted.promise == {}


def test_a_report_that_was_edited_is_not_believed(copy, made):
    """Nor where its digest is of a right form; with the right one it is damaged in what it says."""
    path = copy / "graft_report.json"
    text = path.read_text()
    path.write_text(text.replace('"strength": "bitwise"', '"strength": "rounded"'))
    assert "its own digest, its last value, does not fit it" in report_of(copy)[0]
    path.write_text("{}")
    assert "its own digest" in report_of(copy)[0]
    path.unlink()
    assert account_for(Checkpoint.open(str(copy))) is None
    assert verify(str(made[0]), str(copy), outputs=False).verdict.startswith(
        "verified on the old vocabulary alone; the 2 new rows were not judged"
    )


def test_the_page_may_be_made_again(copy):
    page = copy / "graft_report.html"
    before = page.read_bytes()
    page.write_text("<p>nothing</p>")
    assert report_of(copy) == ("report: graft_report.html is not the file that was written",)
    write_page(copy)
    assert page.read_bytes() == before
    assert report_of(copy) == ()


def test_the_adapter_beside_the_base_is_held_against_the_report_too(copy):
    path = copy / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, read_header(path).metadata)
    assert f"report: adapter/adapter_model.safetensors: tensors are not what was written: {name}" in report_of(copy)
    path.write_bytes(b"")
    assert "adapter/adapter_model.safetensors: is truncated" in report_of(copy)[0]


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ({"op": "reinit", "parameters": ["model.layers.1.mlp.*"]}, "promised intentional: "),
        (
            {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b"], "pad_token": "<pad>"},
            "promised bitwise: hidden states of the backbone",
        ),
    ],
)
def test_what_was_changed_on_purpose_is_no_failure_and_the_verdict_says_what_was_promised(
    made, tmp_path, operation, words
):
    source, out = made[0], tmp_path / "out"
    graftkit.apply(recipe(source, out, operation, **QUICK))
    found = verify(str(source), str(out))
    assert found.failures == ()
    assert found.verdict.startswith("verified: B is what was written, byte for byte; ")
    assert words in found.verdict
    assert found.verdict.endswith(" measured")
    (out / "graft_report.json").unlink()
    assert verify(str(source), str(out), outputs=False).found["bytes"]


def test_a_head_that_was_asked_to_pad_with_eos_keeps_its_promise_and_says_so(demo, tmp_path):
    head = {"op": "replace_head", "task": "sequence_classification", "labels": ["a", "b"], "pad_token": "</s>"}
    graftkit.apply(recipe(demo, tmp_path / "out", head, **QUICK))
    found = verify(str(demo), str(tmp_path / "out"), outputs=False)
    assert found.failures == ()
    assert any(note.startswith("pad_token is '</s>', the eos_token too") for note in found.notes)
    (tmp_path / "out" / "graft_report.json").unlink()
    found = verify(str(demo), str(tmp_path / "out"), outputs=False)
    assert any("pad_token is '</s>', the eos_token too" in failure for failure in found.found["tokenizer"])
