"""Small quantized checkpoints, packed by hand as each format defines it: gptq, awq, bitsandbytes, block-wise fp8, mxfp4, nvfp4.

    quantized(source, place, "gptq")

Only linear layers inside the blocks are packed; embeddings, norms and head stay as they are.
"""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

#: Values of the four bits of FP4: a sign, two bits of exponent, one of mantissa.
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

GROUP = 16


def quantized(source, place, kind, **changes):
    """A copy of the checkpoint ``source`` whose linear layers are packed; ``changes`` are fields of its quantization config."""
    pack, said = KINDS[kind]
    shutil.copytree(source, place)
    tensors = {}
    for file in place.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (place / "model.safetensors.index.json").unlink(missing_ok=True)
    packed = {}
    for name, value in tensors.items():
        inside = any(step.isdigit() for step in name.split("."))
        packed |= pack(name, value) if inside and is_linear(name, value) else {name: value}
    save_file(
        {name: value.contiguous() for name, value in packed.items()}, place / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "quantization_config": {**said, **changes}}))
    return place


def is_linear(name, value):
    linear = ("proj.weight", "w1.weight", "w2.weight", "w3.weight", "gate_up_proj", "down_proj")
    return value.dim() > 1 and name.endswith(linear)


def nibbles(codes, axis):
    """Eight 4-bit codes along ``axis`` in each int32, the lowest bits first."""
    codes = codes.movedim(axis, -1).reshape(*codes.movedim(axis, -1).shape[:-1], -1, 8).long()
    words = sum(codes[..., place] << (4 * place) for place in range(8))
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).movedim(-1, axis)


def affine(weight):
    """Codes ``(in, out)``, zeros and scales ``(groups, out)`` of 4-bit groups along the inputs."""
    grouped = weight.float().T.reshape(-1, GROUP, weight.shape[0])
    low, high = grouped.amin(1), grouped.amax(1)
    scales = (high - low).clamp(min=1e-6) / 15
    zeros = (-low / scales).round().clamp(0, 15)
    codes = (grouped / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    return codes.reshape(weight.shape[1], -1), zeros, scales


def gptq(name, weight):
    stem, (codes, zeros, scales) = name.removesuffix(".weight"), affine(weight)
    return {
        f"{stem}.qweight": nibbles(codes, 0),
        f"{stem}.qzeros": nibbles(zeros, 1),
        f"{stem}.scales": scales.half(),
        f"{stem}.g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
        f"{stem}.bias": torch.zeros(weight.shape[0], dtype=torch.float16),
    }


def awq(name, weight):
    stem, (codes, zeros, scales) = name.removesuffix(".weight"), affine(weight)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes, zeros = (one.reshape(one.shape[0], -1, 8)[..., order].flatten(1) for one in (codes, zeros))
    return {
        f"{stem}.qweight": nibbles(codes, 1),
        f"{stem}.qzeros": nibbles(zeros, 1),
        f"{stem}.scales": scales.half(),
    }


def bnb4(name, weight):
    """Blocks of 64 values, each by the nearest of 16 values of a map, two in a byte, the first in the upper bits."""
    table = torch.linspace(-1, 1, 16)
    blocks = weight.float().reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    codes = ((blocks / absmax[:, None])[..., None] - table).abs().argmin(-1).flatten().to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    return {
        name: (codes[0::2] << 4 | codes[1::2])[:, None],
        f"{name}.absmax": absmax,
        f"{name}.quant_map": table,
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def bnb8(name, weight):
    stem, scale = name.removesuffix(".weight"), weight.float().abs().amax(1)
    return {
        name: (weight.float() / scale[:, None] * 127).round().to(torch.int8),
        f"{stem}.SCB": scale,
        f"{stem}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def fp8(name, weight, block=(16, 16)):
    """E4M3 with one float32 factor for each block of the matrix; the last block of an axis may be smaller."""
    rows, columns = (-(-size // step) for size, step in zip(weight.shape, block, strict=True))
    scales, codes = torch.zeros(rows, columns), torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
    for row in range(rows):
        for column in range(columns):
            place = slice(row * block[0], (row + 1) * block[0]), slice(column * block[1], (column + 1) * block[1])
            values = weight[place].float()
            scales[row, column] = values.abs().max() / 448
            codes[place] = (values / scales[row, column]).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scales}


def mxfp4(name, weight):
    """Of experts ``(experts, in, out)``: blocks of 32 inputs, each with a power of two, two values in a byte, the first below."""
    if weight.dim() < 3:
        return {name: weight}
    blocks = weight.float().transpose(1, 2).reshape(weight.shape[0], weight.shape[2], -1, 32)
    exponents = (blocks.abs().amax(-1).clamp(min=1e-30).log2().floor() - 2).clamp(-127, 127)
    codes = ((blocks * torch.exp2(-exponents)[..., None])[..., None] - E2M1).abs().argmin(-1).to(torch.uint8)
    return {
        f"{name}_blocks": codes[..., 0::2] | codes[..., 1::2] << 4,
        f"{name}_scales": (exponents + 127).to(torch.uint8),
    }


def fp4_pairs(weight, whole):
    """Codes, two in a byte, the first below, and E4M3 scales of 16 of a row each, under one scale ``whole`` for the matrix."""
    groups = weight.float().unflatten(-1, (-1, 16))
    scales = (groups.abs().amax(-1) / 6 / whole).clamp(min=2**-6, max=448).to(torch.float8_e4m3fn)
    near = (groups / (scales.float() * whole)[..., None])[..., None] - E2M1
    codes = near.abs().argmin(-1).to(torch.uint8).flatten(-2)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scales


def nvfp4(name, weight):
    """As compressed-tensors writes it: the scale of the matrix is what the others are divided by."""
    divisor = 448 * 6 / weight.float().abs().max()
    codes, scales = fp4_pairs(weight, 1 / divisor)
    stem = name.removesuffix(".weight")
    return {
        f"{name}_packed": codes,
        f"{name}_scale": scales,
        f"{name}_global_scale": divisor.reshape(1),
        f"{stem}.input_global_scale": torch.ones(1),
    }


def modelopt(name, weight):
    """As modelopt writes it: the scale of the matrix is what the others are multiplied by.

    Fused experts ``(experts, in, out)`` are packed along their inputs, and their scales have the name of a weight of its own.
    """
    whole = weight.float().abs().max() / (448 * 6)
    if weight.dim() == 3:
        codes, scales = (part.transpose(1, 2) for part in fp4_pairs(weight.transpose(1, 2), whole))
        beside = {"_weight_scale": scales, "_weight_scale_2": whole, "_input_scale": torch.tensor(1.0)}
        return {name: codes, **{f"{name}{end}": value for end, value in beside.items()}}
    codes, scales = fp4_pairs(weight, whole)
    stem = name.removesuffix(".weight")
    return {name: codes, f"{name}_scale": scales, f"{name}_scale_2": whole, f"{stem}.input_scale": torch.tensor(1.0)}


FP4_GROUPS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
CT = {
    "quant_method": "compressed-tensors",
    "format": "nvfp4-pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**FP4_GROUPS, "dynamic": False},
            "input_activations": {**FP4_GROUPS, "dynamic": "local"},
        }
    },
}
BNB = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": None}
KINDS = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "bnb4": (bnb4, {**BNB, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}),
    "bnb8": (bnb8, {**BNB, "load_in_8bit": True}),
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}),
    "nvfp4": (nvfp4, CT),
    "modelopt": (modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}),
    "mxfp4": (mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}),
}

#: Formats whose quantizer needs a library that is not there: nothing of them is run.
NOT_RUN = ("gptq", "awq", "bnb4", "bnb8", "nvfp4", "modelopt")
