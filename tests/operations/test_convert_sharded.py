"""convert: what a sharded training left becomes safetensors with the bytes that torch.distributed.checkpoint loads; no code is run."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from support.command import assert_one_line, here
from support.families import build
from support.recipes import recipe
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import graftkit
from graftkit import engine
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.distributed import parts
from graftkit.errors import InputRejected, RecipeError

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build("llama_tied", tmp_path_factory.mktemp("sharded") / "base", dtype="bfloat16")


def emptied(base, target):
    """A copy of a checkpoint without its weights, and these."""
    shutil.copytree(base, target)
    held = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    return target, held


def save(state, place):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=place, no_dist=True)


def trained(held):
    """A state as a trainer has it: the model, and what goes on with the training."""
    moments = {name: {"exp_avg": value.float() * 2, "step": torch.tensor(3.0)} for name, value in held.items()}
    return {"model": dict(held), "optimizer": {"state": moments, "param_groups": [{"lr": 0.1}]}, "step": 7}


def in_pieces(held, place, cut):
    """Write a folder as several ranks do: ``cut`` gives the offsets and sizes of the pieces of a tensor."""
    place.mkdir(exist_ok=True)
    described, storage, ranks = {}, {}, {}
    for name, value in held.items():
        chunks = []
        for rank, (offsets, sizes) in enumerate(cut(name, value)):
            piece = value[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))].clone()
            file = ranks.setdefault(rank, bytearray())
            target = place / "piece"
            torch.save(piece, target)
            raw = target.read_bytes()
            storage[MetadataIndex(name, offsets)] = _info(f"__{rank}_0.distcp", len(file), len(raw))
            file += raw
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        described[name] = TensorStorageMetadata(TensorProperties(dtype=value.dtype), value.shape, chunks)
    (place / "piece").unlink()
    for rank, raw in ranks.items():
        (place / f"__{rank}_0.distcp").write_bytes(raw)
    (place / ".metadata").write_bytes(pickle.dumps(Metadata(described, None, storage)))


def _info(file, offset, length):
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    return _StorageInfo(file, offset, length)


def rows(count):
    """Pieces as FSDP cuts them: runs of rows."""

    def cut(name, value):
        del name
        step = -(-value.shape[0] // count)
        starts = range(0, value.shape[0], step)
        return [((s, *[0] * (value.dim() - 1)), (min(step, value.shape[0] - s), *value.shape[1:])) for s in starts]

    return cut


def grid(name, value):
    """Pieces as FSDP over tensor parallelism cuts them: half the rows and half the columns each."""
    if value.dim() != 2:
        return rows(2)(name, value)
    heights, widths = ([0, size // 2, size] for size in value.shape)
    return [
        ((heights[i], widths[j]), (heights[i + 1] - heights[i], widths[j + 1] - widths[j]))
        for i in (0, 1)
        for j in (0, 1)
    ]


def convert(source, output, *more, fields=None, **given):
    operation = {"op": "convert", **(fields or {})}
    return graftkit.apply(recipe(source, output, operation, *more, **given), allow_pickle=True)


def equal(output, held):
    new = {}
    for file in output.glob("*.safetensors"):
        new |= load_file(file)
    return new.keys() == held.keys() and all(
        new[name].dtype == value.dtype and new[name].equal(value) for name, value in held.items()
    )


@pytest.mark.parametrize("lead", ["", "app.model"])
def test_a_folder_of_torchs_own_with_the_prefix_of_its_trainer(base, tmp_path, lead):
    source, held = emptied(base, tmp_path / "source")
    state = {f"{lead}.{name}" if lead else name: value for name, value in held.items()}
    save({**state, "optimizer": trained(held)["optimizer"], "step": 7}, source)
    report = convert(source, tmp_path / "out")
    assert report.verdict.startswith("verified (bitwise)")
    assert report.checks[0].tensors == len(held)
    assert all(item.bitwise for item in report.outputs.comparisons)
    assert equal(tmp_path / "out", held)
    left = report.plan.source.left_behind[".metadata"]
    assert "optimizer.param_groups" in left
    assert f"{2 * len(held) + 2} other entries" in left
    assert not list((tmp_path / "out").glob("*.distcp"))


@pytest.mark.parametrize("cut", [rows(3), grid], ids=["rows", "grid"])
def test_pieces_of_several_ranks_in_the_folder_that_accelerate_writes(base, tmp_path, cut, monkeypatch):
    """Beside that of the optimizer; the names are those of FSDP's and torch.compile's wrappers, and the files of the output are several."""
    source, held = emptied(base, tmp_path / "source")
    wrapped = {
        f"model._orig_mod.{n.replace('layers.0.', 'layers.0._fsdp_wrapped_module.')}": v for n, v in held.items()
    }
    in_pieces(wrapped, source / "pytorch_model_fsdp_0", cut)
    in_pieces({f"state.{TABLE}.exp_avg": held[TABLE]}, source / "optimizer_0", rows(1))
    monkeypatch.setattr(parts, "FILE_BYTES", 1 << 14)
    convert(source, tmp_path / "out", {"op": "extend_vocab", "special_tokens": ["<|a|>"]}, verify={"outputs": False})
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    new = {}
    for file in files:
        new |= load_file(tmp_path / "out" / file)
    assert all(new[name][:320].equal(value[:320]) for name, value in held.items())


def test_two_models_in_one_folder_are_told_apart_by_the_recipe(base, tmp_path):
    source, held = emptied(base, tmp_path / "source")
    average = {name: value * 2 for name, value in held.items()}
    save({"model": dict(held), "ema": average}, source)
    with pytest.raises(InputRejected, match="2 sets of entries .* under ema, model; name one with prefix: ema"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", fields={"prefix": "ema"}, verify={"outputs": False})
    assert equal(tmp_path / "out", average)
    with pytest.raises(InputRejected, match=r"no entry begins with 'average\.'"):
        convert(source, tmp_path / "again", fields={"prefix": "average"})
    with pytest.raises(RecipeError, match=r"operations\.0\.prefix: only what a sharded training left has a prefix"):
        convert(base, tmp_path / "again", fields={"prefix": "ema"})


def test_it_is_read_only_where_the_command_line_allows_it(base, tmp_path):
    source, held = emptied(base, tmp_path / "source")
    save({"model": held}, source)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(source, tmp_path / "out", {"op": "convert"}, verify={"outputs": False})))
    for command in ("plan", "apply"):
        assert_one_line(here(command, path), 3, "--allow-pickle on the command line")
    done = here("apply", path, "--allow-pickle", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(InputRejected, match=r"torch.distributed.checkpoint.*begin the recipe with - op: convert"):
        graftkit.plan(recipe(source, "never", {"op": "cast", "dtype": "float32"}))
    (source / "config.json").unlink()
    assert_one_line(
        here("plan", path, "--allow-pickle", "--overwrite"), 3, "has no config.json; copy it and the tokenizer's files"
    )


class Trap:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_description_that_would_run_code_is_refused_and_nothing_is_run(base, tmp_path):
    source, held = emptied(base, tmp_path / "source")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(source, tmp_path / "out", {"op": "convert"})))
    save({"model": held}, source)
    right = (source / ".metadata").read_bytes()
    (source / ".metadata").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    assert_one_line(here("apply", path, "--allow-pickle", "-q"), 3, "names posix.system")
    found = described(source, right)
    found.planner_data = Trap(tmp_path / "ran")
    (source / ".metadata").write_bytes(pickle.dumps(found))
    assert_one_line(here("apply", path, "--allow-pickle", "-q"), 3, "nothing of it was run")
    (source / ".metadata").write_bytes(right)
    _put(source, TABLE, Trap(tmp_path / "ran"))
    assert_one_line(here("apply", path, "--allow-pickle", "-q"), 3, "could run code: it names posix.system")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def described(source, raw=None):
    """What this test's own ``.metadata`` says."""
    return pickle.loads(raw or (source / ".metadata").read_bytes())  # noqa: S301 - written a moment ago


def _put(source, name, value):
    """Let the one piece of a tensor hold something else."""
    found = described(source)
    index = next(index for index in found.storage_data if index.fqn == f"model.{name}")
    torch.save(value, source / "__9_0.distcp")
    found.storage_data[index] = _info("__9_0.distcp", 0, (source / "__9_0.distcp").stat().st_size)
    (source / ".metadata").write_bytes(pickle.dumps(found))


def lost(source):
    """A rank's piece that ``.metadata`` does not name."""
    found = described(source)
    found.state_dict_metadata[f"model.{TABLE}"].chunks.pop()
    (source / ".metadata").write_bytes(pickle.dumps(found))


def twice(source):
    found = described(source)
    entry = found.state_dict_metadata[f"model.{TABLE}"]
    entry.chunks.append(ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((0, 0))))
    entry.chunks[0] = entry.chunks[1]
    (source / ".metadata").write_bytes(pickle.dumps(found))


def elsewhere(source):
    found = described(source)
    index = next(iter(found.storage_data))
    found.storage_data[index] = _info("../x", 0, 9)
    (source / ".metadata").write_bytes(pickle.dumps(found))


WRONG = {
    "a piece is lost": (lost, "is not made up by its 1 piece"),
    "a piece stands twice": (twice, "is not made up by its 3 pieces"),
    "another folder": (elsewhere, "'../x' is not the name of a file beside it"),
    "garbage": (lambda source: (source / ".metadata").write_bytes(b"garbage"), "is damaged, or not what"),
    "cut off": (lambda source: os.truncate(source / ".metadata", 900), "is damaged, or not what"),
    "a list": (lambda source: (source / ".metadata").write_bytes(pickle.dumps([1])), "is damaged, or not what"),
    "no file": (lambda source: (source / "__1_0.distcp").unlink(), "__1_0.distcp: is missing"),
    "a short file": (lambda source: os.truncate(source / "__1_0.distcp", 999), "__1_0.distcp: was cut off: it has 999 bytes"),
    "another tensor": (lambda source: _put(source, "model.norm.weight", torch.ones(3)), "is not the piece that .metadata describes"),
    "no tensor": (lambda source: _put(source, "model.norm.weight", [1]), "is not the piece that .metadata describes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_folder_is_refused_in_a_line(base, tmp_path, name):
    damage, message = WRONG[name]
    source, held = emptied(base, tmp_path / "source")
    in_pieces({f"model.{name}": value for name, value in held.items()}, source, rows(2))
    damage(source)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(source, tmp_path / "out", {"op": "convert"}, verify={"outputs": False})))
    assert_one_line(here("apply", path, "--allow-pickle", "-q"), 3, message)
    assert not (tmp_path / "out").exists()


def test_a_written_tensor_that_is_not_what_torch_loads_is_caught(base, tmp_path):
    source, held = emptied(base, tmp_path / "source")
    in_pieces({f"model.{name}": value for name, value in held.items()}, source, grid)
    planned = engine.plan(recipe(source, "never", {"op": "convert"}), allow_pickle=True)
    (check,) = planned.outcomes[0].checks
    right = Checkpoint.open(base).tensors
    assert check.compare(right, None).failures == ()
    (swapped,) = check.compare({**right, TABLE: right["model.layers.0.mlp.up_proj.weight"]}, None).failures
    assert TABLE in swapped
    (failure,) = check.compare({name: one for name, one in right.items() if name != TABLE}, None).failures
    assert "'model.embed_tokens.weight' is missing" in failure


# ---- DeepSpeed ----


def stepped(source, held, *files, key="module", latest="global_step5"):
    """The folder of a step as DeepSpeed writes it."""
    (source / "global_step5").mkdir()
    for file in files or ("mp_rank_00_model_states.pt",):
        torch.save({key: held, "ds_version": "0.18", "global_steps": 5}, source / "global_step5" / file)
    (source / "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"not read")
    (source / "latest").write_text(latest)
    return source


def test_the_whole_module_of_zero_2_is_taken_and_tied_weights_stay_one(base, tmp_path):
    source, held = emptied(base, tmp_path / "source")
    stepped(source, {f"module.{name}": value for name, value in {**held, HEAD: held[TABLE]}.items()})
    report = convert(source, tmp_path / "out")
    assert report.verdict.startswith("verified (bitwise)")
    assert equal(tmp_path / "out", held)
    assert "its master copies in float32 and its optimizer are not" in report.plan.source.left_behind["global_step5/"]
    assert not (tmp_path / "out/latest").exists()


def test_an_average_beside_the_module_in_its_file_is_not_taken_for_it(base, tmp_path):
    """Also where it stands in front of it, tensor for tensor of the same size."""
    source, held = emptied(base, tmp_path / "source")
    (source / "global_step5").mkdir()
    average = {name: value * 2 for name, value in held.items()}
    torch.save({"ema": average, "module": held}, source / "global_step5/mp_rank_00_model_states.pt")
    convert(source, tmp_path / "out", verify={"outputs": False})
    assert equal(tmp_path / "out", held)


def doubled():
    value = []
    for _ in range(60):
        value = [value, value]
    return value


def within_itself():
    value = {}
    value["again"] = value
    return value


@pytest.mark.parametrize("make", [doubled, within_itself])
def test_what_else_the_file_holds_is_gone_through_once(base, tmp_path, make):
    source, held = emptied(base, tmp_path / "source")
    (source / "global_step5").mkdir()
    torch.save({"rest": make(), "module": held}, source / "global_step5/mp_rank_00_model_states.pt")
    convert(source, tmp_path / "out", verify={"outputs": False})
    assert equal(tmp_path / "out", held)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"), "weights cut for tensor parallelism"),
        (("layer_00-model_states.pt",), "holds the layers of a pipeline"),
    ],
)
def test_what_cannot_be_had_without_deepspeed_is_refused(base, tmp_path, files, message):
    source, held = emptied(base, tmp_path / "source")
    stepped(source, held, *files)
    with pytest.raises(InputRejected, match=message):
        convert(source, tmp_path / "out")


def test_a_module_of_no_size_and_a_step_that_is_not_there(base, tmp_path):
    source, held = emptied(base, tmp_path / "source")
    stepped(source, {**held, TABLE: torch.empty(0, dtype=torch.bfloat16)})
    with pytest.raises(InputRejected, match="model.embed_tokens.weight: of no size, as ZeRO 3 leaves"):
        convert(source, tmp_path / "out")
    (source / "latest").write_text("../other")
    with pytest.raises(InputRejected, match=r"latest: names '\.\./other'"):
        convert(source, tmp_path / "out")
    shutil.rmtree(source / "global_step5")
    stepped(source, held, key="model")
    with pytest.raises(InputRejected, match="holds no tensors by name"):
        convert(source, tmp_path / "out")


RANK = """
import sys
import torch.distributed as dist, torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
held = load_file(sys.argv[1])
state = {name: distribute_tensor(value, mesh, [Shard(value.dim() - 1)]) for name, value in held.items()}
dcp.save({"model": state}, checkpoint_id=sys.argv[2])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_folder_that_two_processes_wrote(base, tmp_path):
    """By torch's own sharded tensors, cut along their last axis."""
    source, held = emptied(base, tmp_path / "source")
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, tmp_path / "rank.py", base / "model.safetensors", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (source / "__1_0.distcp").is_file()
    convert(source, tmp_path / "out", verify={"outputs": False})
    assert equal(tmp_path / "out", held)
