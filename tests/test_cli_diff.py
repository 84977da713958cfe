"""`graftkit diff`: its exit code where that is asked for, adapters, and differences too many to print."""

import json
import shutil

import pytest
from support.adapters import make_adapter
from support.command import assert_one_line, here


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    base, adapter = make_adapter(tmp_path_factory.mktemp("pair"), "LlamaForCausalLM", target_modules=["q_proj"])
    return base, adapter


def test_the_exit_code_says_whether_anything_differs(demo, tmp_path):
    other = shutil.copytree(demo, tmp_path / "other")
    assert here("diff", demo, other, "--exit-code").returncode == 0
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert here("diff", demo, other).returncode == 0
    for flags in ([], ["--json"]):
        done = here("diff", demo, other, "--exit-code", *flags)
        assert (done.returncode, done.stderr) == (1, "")
        assert "rms_norm_eps" in done.stdout


def test_two_adapters(pair, tmp_path):
    _, adapter = pair
    other = shutil.copytree(adapter, tmp_path / "other")
    assert here("diff", adapter, other, "--exit-code").returncode == 0
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 9}))
    path = other / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x41")
    found = json.loads(here("diff", adapter, other, "--json").stdout)
    assert [(value["place"], value["old"], value["new"]) for value in found["values"]] == [("lora_alpha", 8, 9)]
    assert len(found["tensors"]) == 1


def test_an_adapter_and_a_checkpoint_are_no_pair(pair):
    assert_one_line(here("diff", *pair), 3, "is of an adapter")


def test_many_differences_are_summed_up(demo, tmp_path):
    other = shutil.copytree(demo, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({f"key{number}": number for number in range(500)}))
    short, long = (here("diff", demo, other, *flags).stdout for flags in ([], ["--verbose"]))
    assert "more (--verbose)" in short
    assert len(short.splitlines()) < 100
    assert "key499" in long
    assert "more (--verbose)" not in long
