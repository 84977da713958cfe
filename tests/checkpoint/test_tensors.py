import pytest

from graftkit.checkpoint.tensors import Computed, FileRange, Produced, Stored, Streamed, Zeros, patch_rows
from graftkit.checkpoint.transfer import write_segments


def assemble(tensor, data):
    out = b""
    for segment in tensor.segments():
        if isinstance(segment, FileRange):
            out += data[segment.offset : segment.offset + segment.nbytes]
        else:
            assert len(segment.produce()) == segment.nbytes
            out += bytes(segment.produce())
    return out


@pytest.fixture
def stored(tmp_path):
    data = bytes(range(64))
    (tmp_path / "x").write_bytes(data)
    return Stored("BF16", (8, 3), tmp_path / "x", 5, 48), data


@pytest.mark.parametrize(
    ("rows", "size"),
    [((8, 9), 10), ((6, 7), 8), ((6, 7, 8), 9), ((1, 4, 8), 9), ((0,), 8), ((), 8), (tuple(range(9)), 9)],
)
def test_patched_bytes_are_the_old_rows_with_the_new_ones_in_place(stored, rows, size):
    base, data = stored
    new = bytes(200 + i for i in range(len(rows) * 6))
    tensor = patch_rows(base, axis=0, rows=rows, size=size, produce=lambda: memoryview(new))
    wanted = [data[5 + 6 * i : 11 + 6 * i] for i in range(8)] + [b""] * (size - 8)
    for place, row in enumerate(rows):
        wanted[row] = new[6 * place : 6 * place + 6]
    assert assemble(tensor, data) == b"".join(wanted)
    assert tensor.shape == (size, 3)
    assert tensor.nbytes == size * 6
    assert tensor.produced_nbytes == len(new)


def test_a_patch_lies_on_a_patch_and_on_what_is_computed(stored):
    base, data = stored
    first = patch_rows(base, axis=0, rows=(2, 8), size=9, produce=lambda: memoryview(b"aaaaaabbbbbb"))
    second = patch_rows(first, axis=0, rows=(2, 5, 9), size=10, produce=lambda: memoryview(b"ccccccddddddeeeeee"))
    rows = [data[5 + 6 * i : 11 + 6 * i] for i in range(8)] + [b"bbbbbb", b"eeeeee"]
    rows[2], rows[5] = b"cccccc", b"dddddd"
    assert assemble(second, data) == b"".join(rows)
    asked = []

    def produce():
        asked.append(1)
        return memoryview(bytes(48))

    computed = Computed("BF16", (8, 3), produce)
    patched = patch_rows(computed, axis=0, rows=(1, 4, 8), size=9, produce=lambda: memoryview(b"x" * 18))
    assert assemble(patched, b"") == bytes(6) + b"x" * 6 + bytes(12) + b"x" * 6 + bytes(18) + b"x" * 6
    asked.clear()
    pieces = [segment.produce() for segment in patched.segments()]
    assert len(pieces) == 6
    assert len(asked) == 1, "what is cut into parts is computed once for all of them"


def test_a_leading_axis_of_one_grows_along_the_second(tmp_path):
    base = Stored("F32", (1, 4), tmp_path / "x", 0, 16)
    tensor = patch_rows(base, axis=1, rows=(4,), size=5, produce=lambda: memoryview(b"abcd"))
    assert tensor.shape == (1, 5)
    assert assemble(tensor, bytes(16)) == bytes(16) + b"abcd"


@pytest.mark.parametrize(("rows", "size"), [((9,), 10), ((8,), 10), ((9, 8), 10), ((), 7), ((), 9), ((8, 8), 9)])
def test_rows_that_leave_a_hole_or_shrink_are_refused(stored, rows, size):
    with pytest.raises(ValueError, match="do not grow"):
        patch_rows(stored[0], axis=0, rows=rows, size=size, produce=lambda: memoryview(b""))


def test_rows_that_are_not_contiguous_are_refused(stored):
    with pytest.raises(ValueError, match="not contiguous"):
        patch_rows(stored[0], axis=1, rows=(3,), size=4, produce=lambda: memoryview(b""))


def test_streamed_rows_are_made_in_order_by_what_is_given_up_with_the_last():
    begun = []

    def begin():
        begun.append(True)
        return lambda start, stop: memoryview(bytes(row for row in range(start, stop) for _ in range(2)))

    tensor = Streamed("U8", (5, 2), 2, begin)
    pieces = list(tensor.segments())
    assert [piece.nbytes for piece in pieces] == [4, 4, 2]
    for times in (1, 2):
        assert b"".join(piece.produce() for piece in pieces) == bytes([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
        assert len(begun) == times


def test_zeros_are_skipped_over_and_read_as_zeros(tmp_path):
    """Between other bytes and at the end."""
    zeros = Zeros("U8", (3 << 20,))
    pieces = [
        Produced(2, lambda: memoryview(b"ab")),
        *zeros.segments(),
        Produced(1, lambda: memoryview(b"c")),
        *zeros.segments(),
    ]
    with (tmp_path / "target").open("wb") as file:
        file.truncate(3 + (6 << 20))
        told = []
        write_segments(file.fileno(), pieces, told.append)
    assert (tmp_path / "target").read_bytes() == b"ab" + bytes(3 << 20) + b"c" + bytes(3 << 20)
    assert sum(told) == 3 + (6 << 20)
    assert all(piece.produce() == bytes(piece.nbytes) for piece in zeros.segments())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_made_ahead_stands_in_its_place(tmp_path, count):
    """Ranges and produced pieces in turn, none at all, and a piece that cannot be made."""
    source = tmp_path / "source"
    source.write_bytes(bytes(range(60)))
    pieces = [
        segment
        for index in range(count)
        for segment in (FileRange(source, 20 * index, 5), Produced(2, lambda index=index: memoryview(b"%02d" % index)))
    ]
    with (tmp_path / "target").open("wb") as file:
        write_segments(file.fileno(), pieces)
    wanted = b"".join(bytes(range(20 * index, 20 * index + 5)) + b"%02d" % index for index in range(count))
    assert (tmp_path / "target").read_bytes() == wanted

    def fails():
        raise ArithmeticError("no rows")

    with (tmp_path / "other").open("wb") as file, pytest.raises(ArithmeticError, match="no rows"):
        write_segments(file.fileno(), [FileRange(source, 0, 5), Produced(2, fails)])
