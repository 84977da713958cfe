from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from graftkit.initializers import rows
from graftkit.initializers.seeding import seed_of
from graftkit.initializers.statistics import row_hashes, table_statistics


def source(table, size, step=7):
    return lambda: ((start, table[start : min(start + step, size)]) for start in range(0, size, step))


@pytest.fixture
def table():
    return torch.randn(50, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def test_mean_is_the_float64_mean_of_all_rows(table):
    found = table_statistics(source(table, 40), 40)
    assert found.count == 40
    assert torch.allclose(found.mean, table[:40].double().mean(0), rtol=0, atol=1e-9)
    deviation = (table[:40].double() - table[:40].double().mean(0)).square().mean().sqrt()
    assert found.std == pytest.approx(float(deviation), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_mean_of_many_rows_is_accumulated_in_float64(dtype):
    many = (torch.randn(5000, 8, generator=torch.Generator().manual_seed(2)) + 3).to(dtype)
    found = table_statistics(source(many, 5000, 999), 5000)
    assert torch.allclose(found.mean, many.double().mean(0), rtol=1e-7 if many.element_size() == 2 else 1e-14, atol=0)


def test_untrained_rows_are_left_out_of_the_mean(table):
    table[3] = 0
    table[4] *= 1e-5
    table[20] = table[8]
    table[33] = table[8]
    found = table_statistics(source(table, 50), 50)
    assert (found.zero, found.small, found.duplicates) == (1, 1, 2)
    assert found.live.nonzero().flatten().tolist() == [i for i in range(50) if i not in (3, 4, 20, 33)]
    assert torch.allclose(found.mean, table[found.live].double().mean(0), rtol=0, atol=1e-9)


def test_rows_that_differ_only_between_the_sampled_columns_are_no_duplicates():
    table = torch.randn(20, 256, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    table[7] = table[2]
    table[11] = table[2]
    table[11, 5] += 1
    found = table_statistics(source(table, 20), 20)
    assert found.duplicates == 1
    assert found.live.nonzero().flatten().tolist() == [i for i in range(20) if i != 7]


def test_a_table_that_is_mostly_duplicates_is_averaged_whole(table):
    table[10:] = table[0]
    found = table_statistics(source(table, 50), 50)
    assert found.all_used
    assert found.count == 50
    assert torch.allclose(found.mean, table.double().mean(0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 16])
def test_row_hashes_tell_equal_from_different_rows(dtype, width):
    table = torch.randn(20, width).to(dtype)
    table[7] = table[2]
    hashes = row_hashes(table)
    equal = {(i, j) for i in range(20) for j in range(i) if hashes[i] == hashes[j]}
    same = {(i, j) for i in range(20) for j in range(i) if torch.equal(table[i], table[j])}
    assert equal == same
    assert (7, 2) in same


def test_chunking_does_not_change_which_rows_are_live(table):
    table[49] = table[0]
    whole, pieces = (table_statistics(source(table, 50, step), 50) for step in (50, 1))
    assert torch.equal(whole.live, pieces.live)
    assert torch.allclose(whole.mean, pieces.mean, rtol=1e-12)


def test_mean_cov_has_the_covariance_of_the_live_rows():
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(400, 4, generator=generator) @ torch.diag(torch.tensor([1.0, 2.0, 0.5, 3.0])) + 5
    stats = table_statistics(source(table, 400, 64), 400)
    made = rows.mean_cov(source(table, 400, 64), stats, [seed_of(0, 0, "input", i) for i in range(3000)], eps=0.25)
    wanted = 0.25 * torch.cov(table.double().T, correction=0)
    # 3000 samples: the standard error of a variance is sqrt(2/3000) = 2.6 %, so 5 of them.
    assert torch.allclose(made.var(0), wanted.diag(), rtol=0.13)
    assert torch.allclose(made.mean(0), stats.mean, atol=5 * float(wanted.diag().max() / 3000) ** 0.5)


def test_a_row_does_not_depend_on_which_other_rows_are_made(table):
    stats = table_statistics(source(table, 50), 50)
    seeds = [seed_of(0, 1, "output", i) for i in range(5)]
    for make in (
        lambda s: rows.normal(stats, s, None),
        lambda s: rows.normal(stats, s, 0.02),
        lambda s: rows.mean_cov(source(table, 50), stats, s, 1e-3),
    ):
        assert torch.allclose(make(seeds)[3], make([seeds[3]])[0], rtol=0, atol=1e-15)


def test_normal_has_the_std_asked_for(table):
    stats = table_statistics(source(table, 50), 50)
    made = rows.normal(stats, list(range(2000)), 0.02)
    assert float(made.std()) == pytest.approx(0.02, rel=0.03)
    assert float((rows.normal(stats, list(range(2000)), None) - stats.mean).std()) == pytest.approx(stats.std, rel=0.03)


def test_torch_has_as_many_threads_after_it_as_before(table):
    def count(_):
        table_statistics(source(table, 50), 50)
        return torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(count, range(8))) == {3}
        assert count(0) == 3
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_the_mean_does_not_depend_on_the_number_of_threads():
    table = torch.randn(3000, 700, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(table_statistics(source(table, 3000, 1000), 3000).mean)
    torch.set_num_threads(before)
    assert torch.equal(*found)
