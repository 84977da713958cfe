"""A forward whose parameters are paged in from the files gives the bits of one in memory, and needs no more memory than a block."""

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.batches import batch
from support.families import FAMILIES, build, write_tokenizer

import graftkit
from graftkit.errors import RecipeError
from graftkit.running import memory
from graftkit.running.float64 import float64
from graftkit.running.forward import can_cache, load, outputs_of, run, undisturbed
from graftkit.running.inputs import find_inputs
from graftkit.running.paging import room, table
from graftkit.running.paging.skeleton import split_large_tables
from graftkit.verification.lens.lens import compare_lens
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.promises import Scope
from graftkit.verification.subject import Subject

#: Families by dtype: every one in float32, and in bfloat16 those that convert, tie, or have two sides.
CASES = [(family, "float32") for family in FAMILIES] + [
    (family, "bfloat16") for family in ("llama_tied", "gpt2", "gemma2", "mixtral", "bert", "t5", "bart", "llava")
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Tables of 331 rows are large ones here: seven pieces."""
    monkeypatch.setattr(table, "PIECE", 48 * 32)


def both(directory):
    """The same checkpoint in memory and paged in."""
    memory, pages = load(directory), load(directory, paged=True)
    split_large_tables(memory.model)
    return memory, pages


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_same_bits_as_in_memory(family, dtype, tmp_path):
    build(family, tmp_path, dtype=dtype)
    with undisturbed():
        memory, pages = both(tmp_path)
        one, two = memory.model, pages.model
        assert [(n, p.shape, p.dtype) for n, p in one.named_parameters()] == [
            (n, p.shape, p.dtype) for n, p in two.named_parameters()
        ]
        assert all(isinstance(p, table.Table) or p.isnan().all() for p in two.parameters())
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))
        assert (memory.missing, memory.unexpected) == (pages.missing, pages.unexpected)
        extra_inputs, _ = find_inputs(one, lambda tried: run(one, batch(3), tried))
        probes = [batch(3), batch(1)]
        if can_cache(one, extra_inputs) is None:
            probes.append(replace(batch(1), steps=3))
        for probe in probes:
            assert_equal(run(one, probe, extra_inputs), run(two, probe, extra_inputs))
        with float64(one):
            wide = outputs_of(one, probes[0], extra_inputs)
        with float64(two):
            assert_equal(wide, outputs_of(two, probes[0], extra_inputs))


def assert_equal(one, two):
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A mixture of experts, and a copy in which one weight of each tensor is moved."""
    old, new = (tmp_path_factory.mktemp("moved") / name for name in ("old", "new"))
    for place in (old, new):
        place.mkdir()
        build("mixtral", place)
    tensors = load_file(new / "model.safetensors")
    for tensor in tensors.values():
        tensor.view(-1)[0] += 0.01
    save_file(tensors, new / "model.safetensors", {"format": "pt"})
    return old, new


@pytest.mark.parametrize("compare", [compare_outputs, compare_lens])
def test_same_figures_as_in_memory(compare, moved):
    found = [compare(Subject(*moved, scope=Scope.MEASURE, paged=paged)).to_json() for paged in (False, True)]
    assert [report.pop("paged") for report in found] == [False, True]
    for report in found:
        del report["seconds"]
    assert found[0] == found[1]
    assert "hidden" in json.dumps(found[0])
    assert not all(item["bitwise"] for item in found[0].get("comparisons", [{"bitwise": False}]))


@pytest.mark.parametrize("compare", [compare_outputs, compare_lens])
def test_progress_is_told_while_a_forward_reads(compare, moved):
    """Shares rise to 1, and there are more of them than probes."""
    told = {}
    for paged in (False, True):
        shares = told[paged] = {}

        def progress(what, share, shares=shares):
            shares.setdefault(what, []).append(share)

        compare(Subject(moved[0], moved[0], paged=paged, progress=progress), token_budget=64)
        assert all(values == sorted(values) and values[-1] == 1 for values in shares.values())
    assert all(len(values) > 4 * len(told[False][what]) for what, values in told[True].items())


def test_what_changes_in_the_file_changes_in_the_forward(moved):
    """Parameters are nowhere but in the file: bytes written there while the model lies loaded show in its next forward."""
    with undisturbed():
        model = load(moved[0], paged=True).model
        before = run(model, batch(2))["logits"]
        original = (moved[0] / "model.safetensors").read_bytes()
        with (moved[0] / "model.safetensors").open("r+b") as file:
            file.write((moved[1] / "model.safetensors").read_bytes())
        after = run(model, batch(2))["logits"]
        with (moved[0] / "model.safetensors").open("r+b") as file:
            file.write(original)
    assert not torch.equal(before, after)


def test_memory_left_decides(demo, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 300 << 20)
    assert compare_outputs(Subject(demo, demo), token_budget=64).paged
    monkeypatch.setattr(memory, "available", lambda: 3 << 30)
    assert not compare_outputs(Subject(demo, demo), token_budget=64).paged


def test_a_plan_says_what_it_needs_either_way(moved, tmp_path, monkeypatch):
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
    recipe = {"version": 1, "base_model": str(moved[0]), "operations": [operation], "output": str(tmp_path / "out")}
    whole, paged = (graftkit.plan({**recipe, "verify": {"paged": wanted}}).memory for wanted in (False, True))
    assert whole != paged
    assert graftkit.plan(recipe).memory == whole
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    assert graftkit.plan(recipe).memory == paged


def test_a_quantized_model_is_not_paged(demo, tmp_path):
    config = json.loads((demo / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert not room.paged((tmp_path,), 0, wanted=None)
    with pytest.raises(RecipeError, match="quantized"):
        room.paged((tmp_path,), 0, wanted=True)


def test_available_sees_a_limit():
    """A limit on data, as `ulimit -d` sets it, is seen; less what the process has taken."""
    code = "from graftkit.running.memory import available; print(available())"
    limit = 3 << 30
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )  # fmt: skip
    assert 0 < float(found.stdout) < limit


def write_llama(place, width, layers):
    """A Llama in float32, a shard for each layer, and the bytes of its weights."""
    place.mkdir()
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
        num_attention_heads=8, max_position_embeddings=16, architectures=["LlamaForCausalLM"], dtype="float32",
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config.save_pretrained(place)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in transformers.LlamaForCausalLM(config).state_dict().items()}
    shards = {}
    for name in shapes:
        words = name.split(".")
        shards.setdefault(f"{words[2]:0>5}" if words[1] == "layers" else "other", []).append(name)
    weight_map, generator = {}, torch.Generator().manual_seed(0)
    for shard, names in shards.items():
        file = f"model-{shard}.safetensors"
        tensors = {name: torch.empty(shapes[name]).uniform_(-0.05, 0.05, generator=generator) for name in names}
        save_file({name: t + (t.ndim == 1) for name, t in tensors.items()}, place / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(place)
    return sum(shape.numel() * 4 for shape in shapes.values())


def limited(*arguments, limit=None):
    """Python in a process that may have no more than ``limit`` bytes of data, imports and all."""
    environment = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    set_limit = partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit)) if limit else None
    return subprocess.run(
        [sys.executable, *map(str, arguments)], check=False, capture_output=True, text=True,
        env={**os.environ, **environment}, preexec_fn=set_limit,
    )  # fmt: skip


#: Warms up on a small model, then lets the process take some more memory, and verifies a larger one both ways.
VERIFY = """
import re, resource, sys
from pathlib import Path
from graftkit.verification.outputs import compare_outputs
from graftkit.verification.subject import Subject
small, large, most = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
probes = {"token_budget": 64}
compare_outputs(Subject(small, small, paged=True), **probes)
used = int(re.search("VmData:(.*)kB", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + most, used + most))
found = compare_outputs(Subject(large, large), **probes)
assert found.paged and found.passed, found.failures
try:
    compare_outputs(Subject(large, large, paged=False), **probes)
except Exception as error:
    print("refused:", error)
"""


def test_larger_than_the_memory_that_is_left(demo, tmp_path):
    most = 112 << 20
    assert write_llama(tmp_path / "model", 384, 17) > most
    found = limited("-c", VERIFY, demo, tmp_path / "model", most)
    assert found.returncode == 0, found.stderr
    assert re.match("refused: .*memory", found.stdout)


#: Bytes of data that the process of the next test may have, imports and all; the weights are larger.
LIMIT = 700 << 20


@pytest.mark.slow
def test_larger_than_the_memory_that_the_process_may_use(tmp_path):
    large, out = tmp_path / "model", tmp_path / "out"
    assert write_llama(large, 1024, 15) > LIMIT
    operation = {"op": "extend_vocab", "special_tokens": ["<|a|>"]}
    recipe = {"version": 1, "base_model": str(large), "operations": [operation], "output": str(out)}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    applied = limited("-m", "graftkit", "apply", tmp_path / "recipe.yaml", "--quiet", limit=LIMIT)
    assert applied.returncode == 0, applied.stderr
    assert json.loads((out / "graft_report.json").read_text())["outputs"]["paged"]
    found = limited("-m", "graftkit", "verify", large, out, "--lens", "--json", limit=LIMIT)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["outputs"]["paged"]
    assert report["lens"]["paged"]
    assert not report["failures"]
