"""A file that several threads write, each its part, is the file that one writes; an error in any part comes out."""

import pytest

from graftkit.checkpoint.safetensors_header import encode_header
from graftkit.checkpoint.tensors import Computed, Stored, Zeros
from graftkit.checkpoint.write import split_evenly, write_tensors


def computed(index, size):
    return Computed("U8", (size,), lambda: memoryview(bytes([index] * size)))


def mixed(tmp_path):
    """Computed, stored, zero and empty tensors of uneven sizes, zeros and nothing at the end; and their bytes in order."""
    source = tmp_path / "source"
    source.write_bytes(bytes(range(200)))
    tensors = {
        "none": Zeros("U8", (0,)),
        "small": computed(1, 3),
        "stored": Stored("U8", (50,), source, 10, 50),
        "beside": Stored("U8", (20,), source, 60, 20),
        "large": computed(2, 600),
        "made": computed(3, 70),
        "zeros": Zeros("U8", (900,)),
        "last": Zeros("U8", (0,)),
    }
    content = bytes([1] * 3) + bytes(range(10, 80)) + bytes([2] * 600 + [3] * 70) + bytes(900)
    return tensors, content


@pytest.mark.parametrize("writers", [1, 2, 3, 7, 20])
def test_every_part_lands_in_its_place(tmp_path, writers):
    tensors, content = mixed(tmp_path)
    told = []
    write_tensors(tensors, tmp_path / "target", {"format": "pt"}, told.append, writers=writers)
    header = encode_header([(name, t.dtype, t.shape, t.nbytes) for name, t in tensors.items()], {"format": "pt"})
    assert (tmp_path / "target").read_bytes() == header + content
    assert sum(told) == len(content)


@pytest.mark.parametrize(
    ("sizes", "count", "starts"),
    [([5] * 8, 2, [0, 20]), ([5] * 8, 3, [0, 15, 30]), ([9, 1, 1, 1], 2, [0, 9]), ([1, 1, 10], 2, [0]),
     ([1, 1], 5, [0, 1]), ([3, 0, 3, 0, 0], 2, [0, 3]), ([0, 0, 0], 2, [0, 0])],
)  # fmt: skip
def test_parts_follow_one_another_and_are_about_as_large(sizes, count, starts):
    tensors = [computed(0, size) for size in sizes]
    parts = split_evenly(tensors, count)
    assert [offset for offset, _ in parts] == starts
    assert [tensor for _, members in parts for tensor in members] == tensors


@pytest.mark.parametrize("tensors", [{}, {"none": Zeros("U8", (0,)), "nothing": Zeros("F32", (0, 3))}])
def test_a_file_without_values_is_its_header(tmp_path, tensors):
    write_tensors(tensors, tmp_path / "target", {})
    assert (tmp_path / "target").read_bytes() == encode_header(
        [(n, t.dtype, t.shape, 0) for n, t in tensors.items()], {}
    )


@pytest.mark.parametrize("bad", [0, 5])
def test_an_error_in_any_part_comes_out(tmp_path, bad):
    def fails():
        raise ArithmeticError("no rows")

    tensors = {str(index): computed(index, 100) for index in range(6)} | {str(bad): Computed("U8", (100,), fails)}
    with pytest.raises(ArithmeticError, match="no rows"):
        write_tensors(tensors, tmp_path / "target", {})


def test_a_file_that_exists_is_left_alone(tmp_path):
    (tmp_path / "target").write_text("mine")
    with pytest.raises(FileExistsError):
        write_tensors({"a": computed(1, 3)}, tmp_path / "target", {})
    assert (tmp_path / "target").read_text() == "mine"
