"""What a report was made with."""

from __future__ import annotations

import platform
from importlib import metadata


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries whose words or arithmetic a report rests on, and the kernels that computed."""
    names = ("graftkit", "torch", "transformers", "tokenizers", "safetensors", "numpy")
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found, "kernels": kernels()}


def kernels() -> str:
    """What equal bits hold for: the processor's instructions that torch uses, and its number of threads."""
    import torch

    threads = torch.get_num_threads()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads != 1)}"
