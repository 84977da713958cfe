"""Without a report new rows are judged by what they are: finite, no longer than old rows, no likelier than old ids."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from support.families import build
from support.recipes import recipe

import graftkit
from graftkit.compare import verify

TOKENS = {"op": "extend_vocab", "tokens": ["coroutine"], "special_tokens": ["<|tool|>"]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = tmp_path_factory.mktemp("sources")
    return {family: build(family, place / family) for family in ("llama", "gpt2", "bert")}


def grown(source, output, change=None, **options):
    """An output without its report, its weights changed."""
    graftkit.apply(recipe(source, output, {**TOKENS, **options}, verify={"outputs": False}))
    (output / "graft_report.json").unlink()
    if change:
        edit(output, change)
    return output


def edit(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def fresh(directory):
    return sorted(
        entry["id"]
        for entry in json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
        if entry["content"] in ("coroutine", "<|tool|>")
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("init", ["mean", "zeros", "normal", "mean_cov", "subword_mean"])
def test_rows_of_any_scheme_pass_and_the_verdict_says_that_they_were_judged(sources, tmp_path, family, init):
    found = verify(str(sources[family]), str(grown(sources[family], tmp_path / "out", init=init)))
    assert found.failures == ()
    assert found.verdict.endswith("; its 2 new rows are no longer and no likelier than the old ones")
    kind = "log(1 + k/m)" if init == "mean" or family == "llama" else "log(1 + k max p), p over all positions"
    assert found.outputs.distribution.bound_kind == kind


def test_a_row_that_takes_everything_is_named_with_norm_and_share(sources, tmp_path):
    out = grown(sources["llama"], tmp_path / "out")
    index = fresh(out)[1]
    edit(out, lambda tensors: tensors["lm_head.weight"][index].fill_(50.0))
    found = verify(str(sources["llama"]), str(out))
    (row,) = found.found["bytes"]
    assert row.startswith(
        f"structure: tensor 'lm_head.weight': the new row of id {index} ('<|tool|>') has norm 283, the largest of"
    )
    assert "KL(old, new) is inf, above that of ids as likely as the old ones" in found.found["outputs"][0]
    assert f"the new id {index} ('<|tool|>') takes" in found.found["outputs"][1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_named(sources, tmp_path, value):
    out = grown(sources["llama"], tmp_path / "out")
    index = fresh(out)[0]
    edit(out, lambda tensors: tensors["model.embed_tokens.weight"][index, :1].fill_(value))
    (row,) = verify(str(sources["llama"]), str(out), outputs=False).found["bytes"]
    assert row.endswith(f"the new row of id {index} ('coroutine') holds values that are not finite")


def test_all_wild_rows_of_a_table_are_one_sentence(sources, tmp_path):
    out = grown(sources["gpt2"], tmp_path / "out")
    ids = fresh(out)
    edit(out, lambda tensors: tensors["transformer.wte.weight"][ids[0] : ids[-1] + 1].mul_(1e6))
    (row,) = verify(str(sources["gpt2"]), str(out), outputs=False).found["bytes"]
    assert row.endswith(" (and 1 more row)")


def test_short_rows_can_still_take_everything(sources, tmp_path):
    """Where every old logit is far below zero, zeros are the likeliest row of all."""
    source = tmp_path / "sunk"
    shutil.copytree(sources["bert"], source)
    edit(source, lambda tensors: tensors["cls.predictions.bias"].sub_(30))
    out = grown(source, tmp_path / "out", init="zeros")
    (row, share) = verify(str(source), str(out)).failures
    assert row.startswith("outputs: KL(old, new) is ")
    assert "of the next-token probability on average and up to 0.5, no old id more than" in share


def test_rows_that_are_not_run_are_said_to_be_not_judged(sources, tmp_path):
    out = grown(sources["llama"], tmp_path / "out")
    found = verify(str(sources["llama"]), str(out), outputs=False)
    assert found.failures == ()
    assert found.verdict == (
        "verified on the old vocabulary alone; the 2 new rows were not judged: the share of the next-token probability"
        " that new ids take was not measured"
    )
    assert verify(str(sources["llama"]), str(sources["llama"]), outputs=False).verdict == (
        "verified: B does what A did, on the old vocabulary"
    )
