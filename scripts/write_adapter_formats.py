"""tests/data/adapter_formats: the same adapters as several versions of peft write them, each in an environment of its own.

python scripts/write_adapter_formats.py [VERSION ...]

Each version of peft is installed by pip into a temporary environment, with a transformers that fits it; torch is that of the
environment that runs this. The base is the tiny checkpoint of :func:`make_base`, and every value of an adapter comes from its own name.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data" / "adapter_formats"

#: peft -> what else it needs, from the months in which it came out.
VERSIONS = {
    "0.12.0": ("transformers==4.44.2", "accelerate==0.34.2"),
    "0.15.2": ("transformers==4.51.3", "accelerate==1.6.0"),
    "0.17.1": ("transformers==4.56.2", "accelerate==1.10.1"),
    "0.19.1": ("transformers==5.24.0", "accelerate==1.15.0"),
    "0.21.2": ("transformers==5.24.0", "accelerate==1.15.0"),
}

CLASS = "LlamaForCausalLM"

#: Fields of LoraConfig by the name of the adapter.
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {
        "r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "down_proj", "embed_tokens"],
        "rank_pattern": {"down_proj": 4}, "alpha_pattern": {"q_proj": 5}, "modules_to_save": ["model.norm"],
    },
    "dora": {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["q_proj", "v_proj"]},
    "tokens": {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj"], "trainable_token_indices": [3, 5]},
}  # fmt: skip

#: What no version before this one can write.
SINCE = {"tokens": "0.15.2"}


def not_written(name: str) -> list[str]:
    """The versions that cannot write the adapter ``name``."""
    versions = list(VERSIONS)
    return versions[: versions.index(SINCE[name])] if name in SINCE else []


def make_base(folder: Path) -> None:
    """Write the tiny base: the same bits every time."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.tiny import build

    build(CLASS, folder, vocab_size=64, config_overrides={"hidden_size": 16, "intermediate_size": 24, "head_dim": 4})


def write_adapter(name: str, base: Path, folder: Path) -> None:
    """Let the peft that is installed make the adapter ``name`` on ``base`` and save it into ``folder``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig.from_pretrained(base))
    model.name_or_path = "tiny-llama"
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[name]))
    for parameter_name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            digest = hashlib.sha256(parameter_name.replace(".default", "").encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
            # whole numbers over a power of two, which every processor makes alike
            values = torch.randint(-1024, 1025, parameter.shape, generator=generator) / 4096
            parameter.data = values + 1 if "magnitude" in parameter_name or "norm" in parameter_name else values
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()


def write_version(version: str, base: Path, place: Path) -> None:
    """Install peft ``version`` below ``place``, and let it write each adapter that it can."""
    home = place / version
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    transformers, accelerate = VERSIONS[version]
    for packages in ([transformers], ["--no-deps", f"peft=={version}", accelerate]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "torch.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    for name in ADAPTERS:
        if version not in not_written(name):
            command = [python, __file__, "--inside", name, base, DATA / version / name]
            subprocess.run(command, check=True)
    print(f"{version}: written to {DATA / version}")


def main() -> None:
    """Write those that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="all where none is named")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        name, base, folder = arguments.inside
        write_adapter(name, Path(base), Path(folder))
        return
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        make_base(base)
        for version in arguments.versions or VERSIONS:
            write_version(version, base, Path(place))


if __name__ == "__main__":
    main()
