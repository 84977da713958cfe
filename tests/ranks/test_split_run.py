"""Real torchrun: ranks run one model together, with the report of one process; a fault in one of them, in the middle of it, ends all."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from ranks.test_apply import files_of, is_clean, write_recipe
from support.command import here
from support.ranks import FAULTY, ROOT, environment, said, srun, torchrun
from support.tiny import build

from graftkit.checkpoint.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """So many blocks that each of four ranks has some."""
    place = tmp_path_factory.mktemp("split") / "model"
    build("LlamaForCausalLM", place, max_shard_size="200KB", config_overrides={"num_hidden_layers": 8})
    return place


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_read_each_weight_once_and_find_what_one_process_finds(source, tmp_path, count):
    path = write_recipe(source, tmp_path)
    done = torchrun(count, "apply", path)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "deep" / "out"
    together, report = files_of(output), json.loads((output / "graft_report.json").read_text())
    ranks = report["by_ranks"]["ranks"]
    assert report["by_ranks"]["run_by_rank_0_alone"] == ""
    assert [rank["rank"] for rank in ranks] == list(range(count))
    assert all(rank["blocks"] and rank["weight_bytes_read"] and rank["bytes_moved"] for rank in ranks)
    assert sum(rank["blocks"] for rank in ranks) == 8
    stored = [
        sum(tensor.nbytes for tensor in Checkpoint.open(str(place)).tensors.values()) for place in (source, output)
    ]
    assert sum(rank["weight_bytes_read"] for rank in ranks) == sum(stored)
    assert max(rank["weight_bytes_read"] for rank in ranks) < sum(stored) * 2 / count
    shutil.rmtree(tmp_path / "deep")
    alone = here("apply", path)
    assert alone.returncode == 0, alone.stderr
    by_one = files_of(output)
    assert "by_ranks" not in json.loads((output / "graft_report.json").read_text())
    assert together.keys() == by_one.keys()
    assert {name: (held, by_one[name]) for name, held in together.items() if held != by_one[name]} == {}


def test_a_weight_that_changed_in_a_block_of_rank_1_is_found_in_the_words_of_one_process(source, tmp_path):
    path = write_recipe(source, tmp_path)
    fault = "0 spoil model.layers.7.mlp.up_proj.weight"
    done = torchrun(2, "apply", path, "-q", fault=fault)
    line = [sys.executable, str(FAULTY), "apply", str(path), "-q"]
    alone = subprocess.run(line, env=environment(FAULT=fault), cwd=ROOT, capture_output=True, text=True, check=False)
    assert alone.returncode == 4, alone.stderr
    assert re.search(r"exitcode *: 4", done.stderr), done.stderr
    assert len(said(done)) == 1, done.stderr
    assert said(done)[0].replace("rank 0: ", "").endswith(alone.stderr.strip())
    assert "hidden_states.8" in alone.stderr
    assert is_clean(tmp_path)


def test_ranks_find_what_one_process_does_of_lens_signal_and_first_step(source, tmp_path):
    operations = [{"op": "extend_vocab", "special_tokens": ["<|new|>"]}, {"op": "insert_blocks", "every": 4}]
    path = write_recipe(source, tmp_path, *operations, verify={"lens": True, "signal": True, "first_step": True})
    done = torchrun(2, "apply", path)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "deep" / "out"
    together, report = files_of(output), json.loads((output / "graft_report.json").read_text())
    assert report["by_ranks"]["run_by_rank_0_alone"] == ""
    assert sum(rank["blocks"] for rank in report["by_ranks"]["ranks"]) == 10
    shutil.rmtree(tmp_path / "deep")
    alone = here("apply", path)
    assert alone.returncode == 0, alone.stderr
    by_one = files_of(output)
    assert {name: (held, by_one.get(name)) for name, held in together.items() if held != by_one.get(name)} == {}
    assert together.keys() == by_one.keys()
    assert all(any(f".{name}." in place for place in together) for name in ("lens", "signal", "first_step"))


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "verify"), [("1 die 7", {}), ("1 die_back 1", {"signal": True})])
def test_a_rank_killed_in_the_middle_of_a_forward_or_backward_ends_all(source, tmp_path, fault, verify):
    path = write_recipe(source, tmp_path, verify=verify)
    done = torchrun(2, "apply", path, "-q", fault=fault)
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr
    endings = ("interrupted; nothing was written", "the other ranks do not answer any more; nothing was written")
    assert len(said(done)) <= 1
    assert all(line.endswith(endings) for line in said(done)), said(done)
    assert is_clean(tmp_path), list(tmp_path.rglob("*"))
    assert here("apply", path, "-q", "verify={outputs: false}").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("paged", ["false", "true"])
def test_a_weight_that_one_rank_cannot_read_ends_all_with_its_exit_code(source, tmp_path, paged):
    """Paged in, it is read in the middle of a forward, where whatever a model raises is taken for its answer."""
    path = write_recipe(source, tmp_path, verify={"paged": paged == "true"})
    codes, _, complaints = srun(2, "apply", path, "-q", fault="1 unreadable 9")
    assert codes == [5, 5], complaints
    assert len(complaints) == 1
    assert complaints[0].startswith("graftkit: rank 1: ")
    assert complaints[0].endswith("nothing was written")
    assert is_clean(tmp_path)
