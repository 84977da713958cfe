"""Tensors that one function makes together: once, and to the same bits in whatever thread."""

import os
import subprocess
import sys
import threading

import torch

from graftkit.checkpoint.computed import TensorGroup, as_bytes
from graftkit.checkpoint.reading import read_tensor

#: Decomposes here and in a group that another thread reads, behind what lets the library take its number from the environment.
PROGRAM = """
import threading
import torch
from graftkit.checkpoint.computed import TensorGroup

def decompose():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.svd(weight, full_matrices=False)

torch.set_num_threads(2)
group = TensorGroup(decompose)
thread = threading.Thread(target=group)
thread.start()
thread.join()
print(all(there.equal(here) for there, here in zip(group(), decompose(), strict=True)))
"""


def test_what_it_makes_is_kept():
    calls = []
    group = TensorGroup(lambda: calls.append(1) or {"a": torch.ones(2), "b": torch.zeros(3)})
    tensors = [group.tensor("a", "F32", (2,)), group.tensor("b", "F32", (3,))]
    threads = [threading.Thread(target=read_tensor, args=(tensor,)) for tensor in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert bytes(as_bytes(torch.ones(2))) == read_tensor(tensors[0]).numpy().tobytes()


def test_another_thread_decomposes_to_the_same_bits():
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "True\n", (done.stdout, done.stderr)
