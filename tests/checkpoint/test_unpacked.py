"""Packed weights unpacked, beside transformers' own dequantizers on the same bytes, and beside sums in float64 where those round twice."""

import os

import pytest
import torch
from safetensors.torch import save_file
from support.quantized import E2M1, fp8, mxfp4

from graftkit.checkpoint.reading import read_tensor
from graftkit.checkpoint.rounding import round_once
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.unpacked import microscaled, scaled_blocks

pytestmark = pytest.mark.numerical


def stored(place, **tensors):
    """Lazy tensors of a file with these."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, place / "packed.safetensors")
    found = read_header(place / "packed.safetensors").tensors
    return [found[name] for name in tensors]


def codes_of(*shape, seed=0, dtype=torch.float8_e4m3fn):
    """Random bytes as FP8 codes, every one but those of no number."""
    drawn = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8).view(dtype)
    return torch.where(drawn.float().isfinite(), drawn.float(), 1.0).to(dtype)


def by_transformers(codes, scales):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    return Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)


def rounded_twice(code):
    """Scales whose product with ``code`` lies so near to the middle between two of bfloat16 that float32 cannot tell the side."""
    scales = 1 + torch.arange(2**22, 2**23).double() / 2**23
    exact = code * scales
    nearest, by_float32 = round_once(exact, torch.bfloat16), exact.float().bfloat16()
    return scales[nearest != by_float32].float()


def bits(values):
    return values.contiguous().view(torch.int16)


@pytest.mark.parametrize("shape", [(96, 160), (3, 64, 96)])
def test_fp8_is_what_transformers_gives_but_where_that_rounds_twice(shape, tmp_path):
    """torch makes a float32 product of it first: where that falls on the middle between two of bfloat16, it may take the wrong one."""
    codes = codes_of(*shape)
    codes[..., ::7] = 15.0
    grid = (*shape[:-2], shape[-2] // 32, shape[-1] // 32)
    scales = torch.rand(grid, generator=torch.Generator().manual_seed(1)) + 0.5
    scales[..., 1] = rounded_twice(15.0)[: scales[..., 1].numel()].view(grid[:-1])
    ours = read_tensor(scaled_blocks(*stored(tmp_path, codes=codes, scales=scales), (32, 32), "BF16"))
    theirs = by_transformers(codes, scales)
    exact = codes.double() * scales.double().repeat_interleave(32, -2).repeat_interleave(32, -1)
    other = bits(ours) != bits(theirs)
    assert other.any()
    assert ((exact.float().view(torch.int32) & 0xFFFF)[other] == 0x8000).all()
    assert ((ours.double() - exact).abs() < (theirs.double() - exact).abs())[other].all()
    assert ((ours.double() - exact).abs() <= (theirs.double() - exact).abs()).all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("stored_as", ["float8_e8m0fnu", "uint8", "bfloat16"])
def test_powers_of_two_are_exact_and_so_equal_to_the_bit(stored_as, dtype, tmp_path):
    codes = codes_of(64, 96, dtype=dtype)
    exponents = torch.randint(100, 150, (2, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    powers = torch.exp2(exponents.double() - 127)
    scales = exponents if stored_as == "uint8" else exponents.view(torch.float8_e8m0fnu)
    scales = powers.bfloat16() if stored_as == "bfloat16" else scales
    ours = read_tensor(scaled_blocks(*stored(tmp_path, codes=codes, scales=scales), (32, 32), "BF16"))
    assert bits(ours).equal(bits(by_transformers(codes, scales)))
    assert ours.double().equal(codes.double() * powers.repeat_interleave(32, 0).repeat_interleave(32, 1))


def test_the_last_blocks_may_be_smaller(tmp_path):
    """Which transformers' dequantizer refuses, or takes for smaller blocks everywhere."""
    weight = torch.randn(40, 50, generator=torch.Generator().manual_seed(3)).bfloat16()
    packed = fp8("w", weight, (24, 16))
    assert packed["w_scale_inv"].shape == (2, 4)
    ours = read_tensor(
        scaled_blocks(*stored(tmp_path, codes=packed["w"], scales=packed["w_scale_inv"]), (24, 16), "F32")
    )
    for row in range(40):
        for column in range(50):
            exact = packed["w"][row, column].double() * packed["w_scale_inv"][row // 24, column // 16].double()
            assert ours[row, column] == exact.float()
    with pytest.raises(ValueError, match="not divisible"):
        by_transformers(packed["w"], packed["w_scale_inv"])


def test_mxfp4_is_what_transformers_gives_for_every_byte_and_exponent(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 252, 1, 1)
    scales = torch.arange(1, 253, dtype=torch.uint8)[None, :, None].repeat(2, 1, 16)
    scales[1] = scales[1].flip(0)
    ours = read_tensor(microscaled(*stored(tmp_path, blocks=blocks, scales=scales), "BF16"))
    assert bits(ours).equal(bits(convert_moe_packed_tensors(blocks, scales)))
    values = torch.stack((E2M1[blocks.long() & 15], E2M1[blocks.long() >> 4]), -1).flatten(-2).double()
    exact = (values * torch.exp2(scales.double() - 127)[..., None]).flatten(-2).transpose(1, 2)
    assert ours.double().equal(exact)


def test_packers_and_unpackers_are_each_others_way_back(tmp_path):
    """What the formats hold exactly comes back to the bit; so the packers of these tests are the formats'."""
    weight = (E2M1[torch.randint(0, 16, (2, 64, 24), generator=torch.Generator().manual_seed(4))] / 8).bfloat16()
    weight[:, ::32] = 0.75  # the largest of FP4 in every block, so that each has the same exponent
    packed = mxfp4("w", weight)
    ours = read_tensor(microscaled(*stored(tmp_path, blocks=packed["w_blocks"], scales=packed["w_scales"]), "BF16"))
    assert ours.equal(weight)


def test_a_large_weight_is_never_held_whole(tmp_path, monkeypatch):
    codes, scales = stored(tmp_path, codes=codes_of(2048, 4096), scales=torch.ones(16, 32))
    read, preadv = [], os.preadv

    def counted(*arguments):
        count = preadv(*arguments)
        read.append(count)
        return count

    monkeypatch.setattr(os, "preadv", counted)
    sizes = [len(piece.produce()) for piece in scaled_blocks(codes, scales, (128, 128), "BF16").segments()]
    assert (sum(sizes), max(sizes), max(read)) == (2 * 2048 * 4096, 2 << 20, 1 << 20)
