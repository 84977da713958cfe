"""What a file beside a model holds, by its name alone: the model once more, the state of a training, or other trained values."""

from __future__ import annotations

import fnmatch

#: File name endings of formats that can run code when they are read, or that other libraries load.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: File name endings of trained values, of a model or of anything else, such as a head that was fitted to its outputs.
_VALUES = (*PICKLES, ".pickle", ".joblib", ".npz", ".npy", ".h5", ".msgpack", ".safetensors")

#: The names that transformers and the exporters give a whole model; a name before these marks, as in model_head.pkl, is another's.
MODEL_WEIGHTS = (
    *("pytorch_model[.-]*bin", "pytorch_model_fsdp.bin", "tf_model[.-]*h5", "flax_model[.-]*msgpack", "openvino_model[._-]*"),
    *(f"model{middle}{ending}" for middle in ("", ".*", "-*-of-*") for ending in (*PICKLES, ".npz", ".h5", ".msgpack")),
    *("consolidated*.pt", "consolidated*.pth", "consolidated*.safetensors", "ggml-*.bin"),
    *("*.onnx", "*.onnx_data", "*.gguf", "*.ot", "*.tflite", "*.mlmodel"),
)  # fmt: skip
_MODEL_SAFETENSORS = ("model.*safetensors", "model-*-of-*.safetensors")

#: What the trainers of transformers, accelerate and DeepSpeed write beside a model, to go on with a training.
TRAINING_STATE = (
    *(f"{name}{ending}" for name in ("optimizer*", "scheduler*", "scaler*", "sampler*") for ending in (".pt", ".bin")),
    *(
        "rng_state*.pth",
        "random_states*.pkl",
        "training_args.bin",
        "trainer_state.json",
        "recipe_state.pt",
        "dl_state_dict*.bin",
        "*_optim_states.pt",
        "*model_states.pt",
        "latest",
        "zero_to_fp32.py",
        "*.distcp",
    ),
)


def is_model_weights(name: str) -> bool:
    """Whether the file is called as one that holds the model's own weights."""
    return _matches(name, (*MODEL_WEIGHTS, *_MODEL_SAFETENSORS))


def is_training_state(name: str) -> bool:
    """Whether the file is called as one that only goes on with a training."""
    return _matches(name, TRAINING_STATE)


def holds_values(name: str) -> bool:
    """Whether the file, as it is called, holds trained values; of the model or of what lies beside it."""
    return name.lower().endswith(_VALUES) and not is_training_state(name)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)
