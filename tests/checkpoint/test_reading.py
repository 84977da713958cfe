"""Tensors that are read into the same memory are what they are, and threads do not share it."""

import threading

import torch

from graftkit.checkpoint.reading import Scratch, read_tensor
from graftkit.checkpoint.tensors import Computed, Stored, patch_rows


def test_memory_is_used_again_and_grows(tmp_path):
    data = tmp_path / "data"
    data.write_bytes(bytes(range(240)))
    stored = Stored("U8", (4, 5), data, 3, 20)
    large = Stored("U8", (100,), data, 50, 100)
    made = Computed("U8", (7,), lambda: memoryview(bytes(range(7))))
    grown = patch_rows(stored, axis=0, rows=(1, 4), size=5, produce=lambda: memoryview(bytes(10)))
    scratch = Scratch()
    for tensor in (large, stored, made, grown, large):
        assert torch.equal(scratch.read(tensor), read_tensor(tensor))
    first = scratch.read(stored)
    kept = first.clone()
    second = scratch.read(made)
    assert second.data_ptr() == first.data_ptr()
    assert not torch.equal(first, kept)


def test_each_thread_reads_into_memory_of_its_own():
    scratch = Scratch()
    ours = scratch.read(Computed("U8", (3,), lambda: memoryview(b"abc")))
    places = []

    def read():
        places.append(scratch.read(Computed("U8", (3,), lambda: memoryview(b"xyz"))).data_ptr())

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert bytes(ours.numpy()) == b"abc"
    assert places != [ours.data_ptr()]
