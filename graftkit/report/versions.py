"""What a report was made with."""

from __future__ import annotations

import platform
from importlib import metadata

#: The libraries whose words or arithmetic a report rests on.
LIBRARIES = ("graftkit", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries, and the kernels that computed."""
    return {**installed(), "kernels": kernels()}


def installed() -> dict[str, str]:
    """Versions of Python and of the libraries, without importing one."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def kernels() -> str:
    """What equal bits hold for: the processor's instructions that torch uses, and its number of threads."""
    import torch

    threads = torch.get_num_threads()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {threads} thread{'s' * (threads != 1)}"
