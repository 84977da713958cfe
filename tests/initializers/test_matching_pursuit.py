"""Orthogonal matching pursuit beside a plain one: the same atoms in the same order, and coefficients to the last bits of float64."""

import pytest
import torch

import graftkit.initializers.matching_pursuit as pursuit
from graftkit.initializers.matching_pursuit import matching_pursuit


def plainly(vector, atoms, k):
    """As the algorithm is written down: one vector, least squares from scratch at each step."""
    rest, chosen = vector, []
    for _ in range(k):
        products = (atoms @ rest).abs()
        products[chosen] = -1
        chosen.append(int(products.argmax()))
        coefficients = torch.linalg.lstsq(atoms[chosen].T, vector[:, None]).solution[:, 0]
        rest = vector - atoms[chosen].T @ coefficients
    return chosen, coefficients, rest


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_atoms_and_coefficients_are_those_of_a_plain_one(monkeypatch):
    monkeypatch.setattr(pursuit, "BATCH_BYTES", 7 * 8 * 12 * 40)  # seven vectors at a time
    monkeypatch.setattr(pursuit, "BLOCK_BYTES", 50 * 8 * 40)  # and fifty atoms
    vectors, atoms = drawn(30, 40, seed=1), drawn(200, 40) * torch.linspace(0.1, 9, 200, dtype=torch.float64)[:, None]
    found = matching_pursuit(vectors, atoms, 12)
    for place, vector in enumerate(vectors):
        chosen, coefficients, rest = plainly(vector, atoms, 12)
        assert found.atoms[place].tolist() == chosen
        torch.testing.assert_close(found.coefficients[place], coefficients, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.residuals[place], rest.norm() / vector.norm(), rtol=1e-10, atol=1e-12)


def test_a_sparse_combination_is_found_again_and_costs_no_more_atoms_than_it_has():
    atoms = drawn(60, 64)
    vector = 2 * atoms[3] - 0.5 * atoms[17] + 0.25 * atoms[40]
    found = matching_pursuit(vector[None], atoms, 8)
    assert set(found.atoms[0, :3].tolist()) == {3, 17, 40}
    assert found.coefficients[0, 3:].abs().max() <= 64 * 2.0**-53 * 4
    torch.testing.assert_close(found.of(atoms)[0], vector, rtol=1e-12, atol=1e-13)


def test_the_same_combination_in_another_space_is_what_is_wanted():
    atoms, other = drawn(50, 24), drawn(50, 10, seed=2)
    found = matching_pursuit(drawn(5, 24, seed=3), atoms, 6)
    for place in range(5):
        wanted = sum(c * other[a] for a, c in zip(found.atoms[place], found.coefficients[place], strict=True))
        torch.testing.assert_close(found.of(other)[place], wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("k", [9, 12])
def test_more_atoms_than_the_space_has_directions_are_not_used(k):
    """Of what is left then only rounding remains, which no atom is fitted to; equal atoms depend on one another."""
    atoms = torch.cat([drawn(20, 8)] * 2)
    found = matching_pursuit(drawn(4, 8, seed=5), atoms, k)
    assert found.residuals.max() <= 8 * 8 * 2.0**-53
    assert (found.coefficients[:, 8:] == 0).all()
    assert found.coefficients.isfinite().all()


def test_a_zero_vector_is_no_combination():
    found = matching_pursuit(torch.zeros(1, 8), drawn(20, 8), 3)
    assert (found.coefficients == 0).all()


def test_rows_of_16_bits_are_widened_once():
    atoms, vectors = drawn(40, 16).bfloat16(), drawn(3, 16, seed=4).bfloat16()
    narrow, wide = matching_pursuit(vectors, atoms, 5), matching_pursuit(vectors.double(), atoms.double(), 5)
    assert narrow.atoms.equal(wide.atoms)
    assert narrow.coefficients.equal(wide.coefficients)


def near_twins(count=60, width=32):
    """Vectors, and atoms in pairs that differ by less than float32 can tell, in either order."""
    one = drawn(count, width, seed=6)
    other = one + 1e-9 * drawn(count, width, seed=7)
    return drawn(12, width, seed=8), torch.stack((one, other), 1).reshape(-1, width)[
        torch.randperm(2 * count, generator=torch.Generator().manual_seed(9))
    ]


def test_of_two_atoms_that_float32_cannot_tell_apart_it_is_that_of_float64():
    vectors, atoms = near_twins()
    found = matching_pursuit(vectors, atoms, 1)
    assert found.atoms[:, 0].equal((vectors @ atoms.T).abs().argmax(1))


def test_of_two_atoms_in_one_direction_the_longer_is_taken():
    atoms = drawn(30, 16)
    both = torch.stack((atoms, 3 * atoms), 1).reshape(-1, 16)
    found = matching_pursuit(drawn(9, 16, seed=1), both, 4)
    assert (found.atoms[:, 0] % 2 == 1).all()
    assert found.atoms.equal(2 * matching_pursuit(drawn(9, 16, seed=1), atoms, 4).atoms + 1)


def test_it_is_the_second_look_that_tells_them_apart(monkeypatch):
    vectors, atoms = near_twins()
    monkeypatch.setattr(pursuit, "SINGLE_UNIT", -1.0)  # no two are near
    found = matching_pursuit(vectors, atoms, 1)
    assert not found.atoms[:, 0].equal((vectors @ atoms.T).abs().argmax(1))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_unit_of_length_does_not_matter(scale):
    vectors, atoms = drawn(9, 24, seed=1), drawn(80, 24)
    plain, scaled = matching_pursuit(vectors, atoms, 6), matching_pursuit(vectors * scale, atoms * scale, 6)
    assert scaled.atoms.equal(plain.atoms)
    torch.testing.assert_close(scaled.coefficients, plain.coefficients, rtol=1e-10, atol=1e-12)
    assert matching_pursuit(vectors * scale, atoms, 6).atoms.equal(plain.atoms)


def test_a_lower_precision_of_float32_products_changes_nothing():
    vectors, atoms = drawn(9, 24, seed=1), drawn(80, 24)
    plain = matching_pursuit(vectors, atoms, 6)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert matching_pursuit(vectors, atoms, 6).atoms.equal(plain.atoms)
    finally:
        torch.set_float32_matmul_precision(before)
