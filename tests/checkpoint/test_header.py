"""Headers are read strictly, and written as the library writes them. Each fault is planted into a file made by hand."""

import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_support import SHAPES, entry, raw_file, tensors
from safetensors import deserialize, safe_open
from safetensors.numpy import load, save

from graftkit.checkpoint import safetensors_header
from graftkit.checkpoint.safetensors_header import MAX_HEADER_BYTES, encode_header, read_header
from graftkit.errors import InputRejected, StorageFault

ONE = b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
FOUR = bytes(4)


def rejected(tmp_path, raw):
    path = tmp_path / "model-00002-of-00006.safetensors"
    path.write_bytes(raw)
    with pytest.raises(InputRejected) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith("model-00002-of-00006.safetensors: ")
    assert message.isprintable()
    return message.removeprefix("model-00002-of-00006.safetensors: ")


def test_reads_what_the_library_wrote(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(tensors(*SHAPES), {"format": "pt"}))
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert header.file_size == path.stat().st_size
    assert {name: stored.shape for name, stored in header.tensors.items()} == SHAPES
    offsets = [stored.offset for stored in header.tensors.values()]
    assert offsets == sorted(offsets)
    assert offsets[0] == header.data_start
    raw = path.read_bytes()
    for name, stored in header.tensors.items():
        assert raw[stored.offset : stored.offset + stored.nbytes] == tensors(name)[name].tobytes()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_encodes_byte_for_byte_like_the_library(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    odd = {"b": np.zeros(3, np.uint8), 'quote " \\ é \n \x1b': np.zeros((2, 1), np.float16), "none": np.zeros(0)}
    path.write_bytes(save(odd, metadata))
    header = read_header(path)
    entries = [(name, stored.dtype, stored.shape, stored.nbytes) for name, stored in header.tensors.items()]
    encoded = encode_header(entries, header.metadata)
    assert encoded == path.read_bytes()[: header.data_start]
    assert len(encoded) % 8 == 0


def test_the_library_reads_what_is_encoded():
    encoded = encode_header([("b", "F32", (2,), 8), ("a", "BF16", (0, 3), 0)], {"k": "v"})
    assert encoded[8:].startswith(b'{"__metadata__":{"k":"v"},"b":')
    assert load(encode_header([("b", "F32", (2,), 8)]) + bytes(8))["b"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "entries",
    [
        [("a", "F32", (1,), 4), ("a", "F32", (1,), 4)],
        [("__metadata__", "F32", (1,), 4)],
        [("a", "F32", (2,), 4)],
    ],
)
def test_does_not_encode_a_header_that_it_would_refuse(entries):
    with pytest.raises(ValueError, match=r"a|__metadata__"):
        encode_header(entries)


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [("F4", (2, 3), 3), ("F6_E2M3", (4,), 3), ("F6_E3M2", (2, 2), 3), ("F8_E4M3", (3,), 3)],
)
def test_accepts_opaque_dtypes_of_the_right_size(tmp_path, dtype, shape, nbytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_file({"x": entry(dtype, shape, (0, nbytes))}, bytes(nbytes)))
    stored = read_header(path).tensors["x"]
    assert (stored.dtype, stored.shape, stored.nbytes) == (dtype, shape, nbytes)
    with safe_open(path, "np") as library:
        assert list(library.keys()) == ["x"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        # The library takes the last of two tensors of the same name, of two metadata keys, and ignores unknown fields.
        (raw_file(b"{" + ONE + b"," + ONE + b"}", FOUR), "tensor 'x': stands twice in the header"),
        (
            raw_file(b'{"__metadata__":{"a":"1","a":"2"},' + ONE + b"}", FOUR),
            "__metadata__: is not an object of strings with distinct names",
        ),
        (
            raw_file({"x": {**entry(), "scale": 2}}, FOUR),
            "tensor 'x': its entry is not an object with exactly dtype, shape and data_offsets",
        ),
        (
            raw_file(b'{"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR),
            "tensor 'x': its entry is not an object with exactly dtype, shape and data_offsets",
        ),
        (
            raw_file({"x": [1, 2]}, FOUR),
            "tensor 'x': its entry is not an object with exactly dtype, shape and data_offsets",
        ),
        (
            raw_file({"x": entry(), "y": entry(offsets=(8, 12))}, bytes(12)),
            "tensor 'y': begins at byte 8 of the data, not at 4: it leaves a hole before it",
        ),
        (
            raw_file({"x": entry(), "y": entry(offsets=(2, 6))}, bytes(6)),
            "tensor 'y': begins at byte 2 of the data, not at 4: it overlaps the tensor before it",
        ),
        (
            raw_file({"x": entry()}, bytes(8)),
            "has bytes that belong to no tensor: the header describes 4 bytes of data, the file holds 8",
        ),
        (raw_file({"x": entry()}, bytes(2)), "is truncated: the header describes 4 bytes of data, the file holds 2"),
        (
            raw_file({"x": entry(shape=(2,))}, FOUR),
            "tensor 'x': F32 of shape [2] needs 8 bytes, its data_offsets hold 4",
        ),
        (
            raw_file({"x": entry("F4", (3,), (0, 1))}, bytes(1)),
            "tensor 'x': F4 of shape [3] needs 1.5 bytes, its data_offsets hold 1",
        ),
        (raw_file({"x": entry("Q4_K")}, FOUR), "tensor 'x': unknown dtype 'Q4_K'"),
        (raw_file({"x": entry(["F32"])}, FOUR), "tensor 'x': unknown dtype ['F32']"),
        (raw_file({"x": entry(shape=(-1,))}, FOUR), "tensor 'x': shape [-1] is not a list of sizes"),
        (raw_file({"x": entry(shape=(True,))}, FOUR), "tensor 'x': shape [True] is not a list of sizes"),
        (raw_file({"x": entry(shape=(1.0,))}, FOUR), "tensor 'x': shape [1.0] is not a list of sizes"),
        (raw_file({"x": entry(shape=None)}, FOUR), "tensor 'x': shape None is not a list of sizes"),
        (raw_file({"x": entry(shape=(2**62, 4, 0), offsets=(0, 0))}), "shape [4611686018427387904, 4, 0] is too large"),
        (raw_file({"x": entry(offsets=(4, 0))}, FOUR), "tensor 'x': data_offsets [4, 0] are not a range of bytes"),
        (raw_file({"x": entry(offsets=(0, 2, 4))}, FOUR), "data_offsets [0, 2, 4] are not a range of bytes"),
        (raw_file(b'{"\\ud800":{}}'), "tensor '\\ud800': the name is no valid Unicode text"),
        (raw_file({"\x1b[2Jx": entry("?")}, FOUR), "tensor '\\x1b[2Jx': unknown dtype '?'"),
        (raw_file({"__metadata__": {"a": 1}}), "__metadata__: is not an object of strings with distinct names"),
        (raw_file({"__metadata__": [1]}), "__metadata__: is not an object of strings with distinct names"),
        (raw_file(b"[]"), "the header is not a JSON object"),
        # The library accepts a space before the object.
        (raw_file(b" {" + ONE + b"}", FOUR), "the header is not a JSON object"),
        (raw_file(b"{" + ONE + b"}\0", FOUR), "the header is not JSON: Extra data"),
        (raw_file(b'{"x":NaN}'), "the header is not JSON: NaN is not a JSON value"),
        (raw_file(b'{"\xff":1}'), "the header is not JSON: 'utf-8' codec can't decode byte 0xff"),
        (raw_file(b'{"x":' + b"[" * 100_000), "the header is not JSON: maximum recursion depth exceeded"),
        (raw_file(b'{"x":' + b"9" * 5_000 + b"}"), "the header is not JSON: Exceeds the limit"),
        (b"", "is truncated or no safetensors file: it holds 0 bytes in all"),
        (b"abc", "is truncated or no safetensors file: it holds 3 bytes in all"),
        (raw_file({"x": entry()}, FOUR, length=10**15), "is truncated or no safetensors file"),
        (raw_file({"x": entry()}, FOUR)[:30], "is truncated or no safetensors file: it holds 30 bytes in all"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder",
        ),
    ],
)
def test_names_the_fault(tmp_path, raw, message):
    assert message in rejected(tmp_path, raw)


def test_a_header_over_the_bound_is_refused_before_it_is_read(tmp_path):
    # The library reads up to 100 MB of header: 1.3 million entries took it 55 s and 1.8 GB.
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{")
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(InputRejected, match=f"its header has {MAX_HEADER_BYTES + 1} bytes"):
        read_header(path)


def test_the_bound_lets_a_large_mixture_of_experts_in_one_file_through():
    name = "model.layers.60.mlp.experts.255.gate_proj.weight_scale_inv"
    one = len(encode_header([(name, "F32", (56, 16), 3584)])) + len("000000000000" * 2)
    assert 200_000 * one < MAX_HEADER_BYTES


def test_twice_the_same_name_among_many_is_found_in_linear_time(tmp_path):
    names = [f"t{number}" for number in range(50_000)]
    text = ",".join(f'"{name}":0' for name in [*names, names[-1]])
    assert rejected(tmp_path, raw_file(f"{{{text}}}".encode())) == "tensor 't49999': stands twice in the header"


def test_a_fifo_does_not_hang(tmp_path):
    # safe_open and from_pretrained wait for a writer for ever.
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputRejected, match=r"^model.safetensors: is not a regular file$"):
        read_header(tmp_path / "model.safetensors")


def test_a_link_a_folder_and_nothing_are_refused(tmp_path):
    (tmp_path / "real").write_bytes(save({"x": np.zeros(1)}))
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "folder").mkdir()
    for name, message in {"link": "symbolic link", "folder": "not a regular file", "none": "is missing"}.items():
        with pytest.raises(InputRejected, match=f"^{name}: .*{message}"):
            read_header(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_a_storage_fault(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "x").chmod(0)
    with pytest.raises(StorageFault, match="cannot be read"):
        read_header(tmp_path / "x")


VALID = raw_file(
    {
        "__metadata__": {"format": "pt"},
        "a": entry("F16", (2, 2), (0, 8)),
        "b": entry("F32", (1,), (8, 12)),
        "e": entry("U8", (0,), (12, 12)),
    },
    bytes(12),
)


@settings(max_examples=1000, deadline=1000)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4),
    size=st.integers(0, len(VALID)) | st.just(len(VALID)),
)
def test_damaged_headers_are_refused_or_mean_what_the_library_reads(tmp_path_factory, flips, size):
    damaged = bytearray(VALID)
    for position, value in flips:
        damaged[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(damaged[:size])
    try:
        header = read_header(path)
    except InputRejected as error:
        assert str(error).startswith("damaged.safetensors: ")
        return
    described = {name: (stored.dtype, stored.shape) for name, stored in header.tensors.items()}
    with safe_open(path, "np") as library:
        slices = {name: library.get_slice(name) for name in library.keys()}  # noqa: SIM118
        assert described == {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}
        assert header.metadata == (library.metadata() or {})
    assert sum(stored.nbytes for stored in header.tensors.values()) == len(path.read_bytes()) - header.data_start


@pytest.mark.parametrize("dtype", safetensors_header.ITEM_BITS)
def test_item_sizes_agree_with_the_library(dtype):
    bits = safetensors_header.ITEM_BITS[dtype]
    assert [name for name, _ in deserialize(encode_header([("x", dtype, (8,), bits)]) + bytes(bits))] == ["x"]
