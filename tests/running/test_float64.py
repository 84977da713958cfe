"""Under the mode everything is float64, in every family; one operation that is not is measured, and named where it can be."""

import numpy as np
import pytest
import torch
from support.families import FAMILIES, build
from support.lens import opened, probe

from graftkit.running.float64 import Float64, float64
from graftkit.running.forward import outputs_of, run
from graftkit.verification.lens.floor import NUDGE, measure_floor
from graftkit.verification.lens.gap import gap

#: Unit roundoff of float64 times more terms than any sum of these models has, and that of float32.
SUMS, SINGLE = 4096 * torch.finfo(torch.float64).eps / 2, torch.finfo(torch.float32).eps / 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama"), dtype="bfloat16")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_two_equal_runs_agree_to_the_rounding_of_float64(family, dtype, tmp_path):
    model, extra_inputs = opened(build(family, tmp_path, dtype=dtype))
    floor = measure_floor(model, probe(), extra_inputs)
    assert floor.rows_alone < SUMS
    assert floor.bend < SUMS
    assert floor.effect > NUDGE / 10
    assert not floor.narrow


def test_a_wide_model_alone_is_not_float64(llama):
    """What the mode is for: the norms of a widened model still compute in float32."""
    model, _ = opened(llama)
    with float64(model):
        lens = outputs_of(model, probe())["logits"]
    plain = run(model.double(), probe())["logits"]
    assert SINGLE / 8 < gap(lens, plain) < 2048 * SINGLE


def test_the_model_is_left_as_it_was(llama):
    model, _ = opened(llama)
    before = run(model, probe())["logits"]
    with float64(model):
        assert outputs_of(model, probe())["logits"].dtype == torch.float64
    after = run(model, probe())["logits"]
    assert after.dtype == torch.bfloat16
    assert torch.equal(before, after)
    assert torch.get_default_dtype() == torch.float32


def test_experts_loop_inside_and_are_as_before_outside(tmp_path):
    model, _ = opened(build("mixtral", tmp_path, dtype="bfloat16"))
    before = model.config._experts_implementation
    with float64(model):
        assert model.config._experts_implementation == "eager"
    assert model.config._experts_implementation == before != "eager"


def narrow_norm(module):
    """The norm of ``module``, computed in float32 where no mode sees it."""
    inner = module.forward

    def forward(hidden):
        with torch._C.DisableTorchFunction():
            return inner(hidden.float()).double()

    return forward


def test_a_float32_operation_is_measured_and_named(llama):
    model, _ = opened(llama)
    norm = model.model.layers[1].input_layernorm
    norm.forward = narrow_norm(norm)
    floor = measure_floor(model, probe(), frozenset())
    assert SINGLE / 64 < floor.bend < 256 * SINGLE
    assert ("_to_copy", "model.layers.1.input_layernorm") in {entry[:2] for entry in floor.narrow}


def test_a_float32_operation_that_torch_does_not_see_is_measured(llama):
    model, _ = opened(llama)
    norm = model.model.norm
    norm.register_forward_hook(lambda *call: torch.from_numpy(np.float32(call[2].numpy())))
    floor = measure_floor(model, probe(), frozenset())
    assert SINGLE / 64 < floor.bend < 256 * SINGLE
    assert floor.rows_alone < SUMS  # equal inputs are rounded equally: this is why there are two measurements


def test_rows_that_depend_on_their_neighbours_are_measured(llama):
    model, _ = opened(llama)
    model.model.norm.register_forward_hook(lambda *call: call[2] * (1 + 1e-9 * len(call[2])))
    assert 1e-10 < measure_floor(model, probe(), frozenset()).rows_alone < 1e-8


def autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.T


ASKED = {
    "cast": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "to by keyword": lambda x: x.to(dtype=torch.bfloat16),
    "type": lambda x: x.type(torch.float16),
    "type by name": lambda x: x.type("torch.FloatTensor"),
    "softmax": lambda x: torch.softmax(x, -1, dtype=torch.float32),
    "functional": lambda x: torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32),
    "sum": lambda x: x.sum(dtype=torch.float32),
    "factory": lambda x: torch.zeros(2, dtype=torch.float32) + 0.1,
    "default": lambda x: torch.arange(3) / 7,
    "arange": lambda x: torch.arange(0, 3, dtype=torch.int64).float(),
    "constant": lambda x: torch.tensor(0.1, dtype=torch.float32),
    "like": lambda x: torch.full_like(x, 0.1, dtype=torch.float16),
    "new": lambda x: x.new_tensor([0.1], dtype=torch.float32),
    "complex": lambda x: torch.view_as_complex(x.float().reshape(-1, 2)).to(torch.complex64).abs(),
    "list": lambda x: torch.cat([torch.ones(3, dtype=torch.float32), x.flatten()]),
    "autocast": autocast,
    "numpy": lambda x: torch.from_numpy(np.ones(3, dtype=np.float32)) * 1,
    "in place": lambda x: x.clone().mul_(torch.tensor(0.1, dtype=torch.float32)),
    "constants in a narrow parameter": lambda x: torch.nn.Parameter(x.detach().half()),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_whatever_is_asked_for_is_wide(ask):
    narrow = torch.tensor([[0.1, 0.2], [0.3, 0.4]], dtype=torch.float32)
    with torch.no_grad(), Float64():
        found = ask(narrow * 1)
    assert found.dtype == torch.float64


def test_a_constant_is_not_rounded_first():
    with Float64():
        assert torch.tensor(0.1, dtype=torch.float32).item() == 0.1
        assert torch.full((1,), 0.1, dtype=torch.bfloat16).item() == 0.1


def test_bits_are_read_as_asked():
    with Float64():
        assert torch.tensor([1], dtype=torch.int32).view(torch.float32).dtype == torch.float32


def test_a_large_table_is_widened_by_pieces(monkeypatch):
    from graftkit.running import float64 as module

    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((70, 8), (70,)))
    inputs = torch.randn(2, 3, 8, generator=generator)
    expected = torch.nn.functional.linear(inputs.double(), weight.double(), bias.double())
    monkeypatch.setattr(module, "PIECE", 100)
    with torch.no_grad(), Float64():
        found = torch.nn.functional.linear(inputs, weight, bias)
        named = torch.nn.functional.linear(inputs, weight, bias=bias)
    assert torch.equal(found, named)
    assert gap(expected, found) <= 8 * torch.finfo(torch.float64).eps  # sums of eight terms
