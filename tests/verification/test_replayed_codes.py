"""The decoding of codes by their bits, beside torch's own reading of the same bytes."""

import pytest
import torch
from safetensors.torch import save_file

from graftkit.checkpoint.safetensors_header import read_header
from graftkit.verification.weights.replayed_codes import Fp8Replay, _fp8_values


@pytest.mark.parametrize(("tag", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_code_of_eight_bits(tag, dtype):
    wanted = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    found = torch.from_numpy(_fp8_values(tag))
    assert found.isnan().equal(wanted.isnan())
    assert found.nan_to_num(7.0, 8.0, -8.0).equal(wanted.nan_to_num(7.0, 8.0, -8.0))


@pytest.mark.parametrize("shape", [(40, 50), (3, 40, 50)])
def test_each_value_has_the_scale_of_its_place(shape, tmp_path):
    codes = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scales = torch.rand(*shape[:-2], 2, 4, generator=torch.Generator().manual_seed(1))
    save_file({"codes": codes, "scales": scales}, tmp_path / "packed.safetensors")
    found = read_header(tmp_path / "packed.safetensors").tensors
    replay = Fp8Replay(found["codes"], found["scales"], (24, 16))
    exact = torch.cat([torch.from_numpy(replay.exact(start, start + 1)) for start in range(shape[0])]).view(shape)
    for row in range(40):
        for column in range(50):
            place = (..., row, column)
            wanted = codes[place].double() * scales[..., row // 24, column // 16].double()
            assert exact[place].equal(wanted)
