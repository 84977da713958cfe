"""`inspect` names the tokens whose rows were never trained: by norm, as duplicates, and special ones at their initial values."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import here

from graftkit.initializers.never_trained import initial_rows, untrained_rows
from graftkit.initializers.statistics import table_statistics

D, STD = 256, 0.02


@pytest.fixture
def table():
    """Rows of a trained table, which share a direction and are three times as long as fresh ones; 5 to 9 are not."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, D, generator=generator) * 3 * STD + torch.linspace(-STD, 3 * STD, D)
    rows[5] = 0
    rows[6] *= 1e-4
    rows[8] = rows[7]
    rows[9] = torch.randn(D, generator=generator) * STD
    return rows


def statistics(rows, left_out=()):
    return table_statistics(lambda: iter([(0, rows[:25]), (25, rows[25:])]), len(rows), left_out)


def test_rows_are_found_by_norm_and_as_duplicates(table):
    assert untrained_rows(statistics(table)) == {5: "zero", 6: "near zero", 8: "duplicate"}


def test_special_tokens_at_their_initial_values_are_found(table):
    found = statistics(table)
    assert list(initial_rows(found, range(60), table.__getitem__, STD)) == [9]
    assert list(initial_rows(found, (3, 5, 8), table.__getitem__, STD)) == []


def test_a_row_in_the_common_direction_or_of_another_length_is_trained(table):
    table[9] = table[10] / table[10].norm() * STD * D**0.5
    assert list(initial_rows(statistics(table), [9], table.__getitem__, STD)) == []
    table[9] = torch.randn(D, generator=torch.Generator().manual_seed(1)) * STD * 1.5
    assert list(initial_rows(statistics(table), [9], table.__getitem__, STD)) == []


def test_of_a_table_that_was_never_trained_nothing_is_said():
    fresh = torch.randn(60, D, generator=torch.Generator().manual_seed(2)) * STD
    assert list(initial_rows(statistics(fresh), range(60), fresh.__getitem__, STD)) == []


def test_rows_that_are_left_out_count_nowhere(table):
    table[5] = float("nan")
    left_out = (5, 6, 7, 59)
    found = statistics(table, left_out)
    kept = [index for index in range(60) if index not in left_out]
    assert torch.allclose(found.mean, table[kept].double().mean(0), rtol=0, atol=1e-12)
    assert found.live.nonzero().flatten().tolist() == kept
    assert (found.count, found.zero, found.small, found.duplicates, found.all_used) == (56, 0, 0, 0, False)
    assert found.std == pytest.approx(float((table[kept].double() - found.mean).square().mean().sqrt()))


def test_inspect_names_them(sources, tmp_path):
    source = tmp_path / "base"
    shutil.copytree(sources("llama"), source)
    tensors = load_file(source / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    rows += 0.2
    rows[[5, 6]] = 0
    rows[8] = rows[7]
    rows[3] = torch.randn(32, generator=torch.Generator().manual_seed(0)) * STD
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    done = here("inspect", source)
    assert done.returncode == 0, done.stderr
    named = [line for line in done.stdout.splitlines() if line.startswith("never trained: ")]
    assert [line.partition(", norm")[0] for line in named] == [
        "never trained: model.embed_tokens.weight: special tokens as long as initial values, and in no common direction",
        "never trained: model.embed_tokens.weight: zero",
        "never trained: model.embed_tokens.weight: equal to an earlier row",
    ]
    found = json.loads(here("inspect", source, "--json").stdout)
    table = next(item for item in found["tables"] if item["role"] == "input")
    assert [(row["id"], row["reason"]) for row in table["never_trained"]] == [
        (3, "initial"), (5, "zero"), (6, "zero"), (8, "duplicate"),
    ]  # fmt: skip
    assert table["never_trained"][0]["token"] == "<unk>"
