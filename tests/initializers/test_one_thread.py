"""Within OneThread a thread of the writer computes alone; what other threads compute with stays as it was."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from graftkit.initializers.one_thread import OneThread


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def number_of_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_one_thread_inside_and_the_number_of_before_behind_it():
    with OneThread():
        assert torch.get_num_threads() == 1
        with OneThread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_a_thread_that_begins_meanwhile_has_the_number_of_before():
    with OneThread():
        assert number_of_a_new_thread() == 3
    assert number_of_a_new_thread() == 3


def test_threads_that_overlap_leave_the_number_of_before():
    """One thread begins to compute while another is inside, and goes inside itself when that one has left."""
    inside, began, left = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def first():
        with OneThread():
            inside.set()
            began.wait()
        left.set()

    def second():
        inside.wait()
        seen.append(torch.get_num_threads())
        began.set()
        left.wait()
        with OneThread():
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [3, 1, 3]
    assert number_of_a_new_thread() == 3
    assert torch.get_num_threads() == 3
