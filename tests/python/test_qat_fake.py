# tests/python/test_qat_fake.py
# SPDX-License-Identifier: Apache-2.0
"""Fake quantization: values against NumPy's, gradients against formulas."""

from __future__ import annotations

from typing import Any

import gguf
import halfbyte
import numpy as np
import pytest
import torch
from halfbyte import qat
from halfbyte.errors import ArgumentError
from halfbyte.qat import fake

GRIDS = {
    "q4_0": qat.Grid(),
    "row2": qat.Grid(2, None, False),
    "row4": qat.Grid(4, None, False),
    "row8": qat.Grid(8, None, False),
}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def draw(seed: int, *shape: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


@each_grid
def test_values_are_numpys(grid: qat.Grid) -> None:
    w, steps = draw(0, 6, 64), fake.initial_log_step(draw(0, 6, 64), grid)
    got = fake.fake_weight(w, steps, grid).numpy()
    step = steps.exp().numpy()  # NumPy's own exp differs in the last bit
    if grid.half:
        step = step.astype(np.float16).astype(np.float32)
    rows = w.numpy().reshape(6, -1, grid.group or 64)
    low, high = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
    want = np.clip(np.rint(rows / step), low, high) * step  # rint: ties to even
    np.testing.assert_array_equal(got, want.reshape(6, 64))
    levels = fake.integers(w, steps, grid).numpy()
    np.testing.assert_array_equal(levels.reshape(rows.shape) * step, want)
    assert (levels.min(), levels.max()) <= (low, high)
    assert len(np.unique(levels)) > min(3, high)


def test_ties_go_to_even_and_ends_are_clipped() -> None:
    x = torch.tensor([[0.5, 1.5, -0.5, -2.5, 7.5, 9.0, -8.5, -20.0]])
    y = fake.fake_quant(x, torch.zeros(1, 1), -8, 7)
    assert y.tolist() == [[0.0, 2.0, 0.0, -2.0, 7.0, 7.0, -8.0, -8.0]]


def test_bfloat16_is_divided_in_float32() -> None:
    # 100.5 and 101.5 steps: a quotient of 8 bits would make 100 and 102 of 101 too.
    step = torch.tensor(0.011)
    x = (torch.arange(-128, 128) * step).bfloat16()
    y = fake.fake_quant(x, step.log(), -128, 127)
    want = (torch.round(x.float() / step.log().exp()) * step.log().exp()).bfloat16()
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, want)


@each_grid
def test_gradients_are_the_formula(grid: qat.Grid) -> None:
    w = draw(1, 5, 64).double().requires_grad_()
    steps = fake.initial_log_step(w.detach(), grid).double().requires_grad_()
    g = draw(2, 5, 64).double()
    fake.fake_weight(w, steps, grid).backward(g)
    assert torch.equal(w.grad, g)  # clipped values included

    s = steps.detach().exp()
    if grid.half:
        s = s.half().double()
    rows, up = (x.detach().reshape(*s.shape[:-1], -1) for x in (w, g))
    level = torch.clamp(torch.round(rows / s), grid.low, grid.high)
    inside = (rows / s >= grid.low) & (rows / s <= grid.high)
    slope = torch.where(inside, level - rows / s, level)
    assert 0 < inside.double().mean() <= 1
    want = s * (up * slope).sum(-1, keepdim=True)
    torch.testing.assert_close(steps.grad, want, rtol=1e-12, atol=0)


def test_a_clipped_value_follows_its_step() -> None:
    # Where x is clipped the output is low * exp(l) or high * exp(l): differentiable.
    x = torch.tensor([9.0, -9.5, 30.0], dtype=torch.float64)
    log_step, g = torch.tensor(0.1, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5])

    def loss(at: torch.Tensor) -> torch.Tensor:
        return (fake.fake_quant(x, at, -8, 7) * g).sum()

    at = log_step.clone().requires_grad_()
    loss(at).backward()
    h = 1e-6
    slope = (loss(log_step + h) - loss(log_step - h)) / (2 * h)
    # Central differences of exp: h^2 / 6 of the value, and 1e-16 / h of rounding.
    torch.testing.assert_close(at.grad, slope, rtol=1e-9, atol=0)


def test_a_value_inside_follows_its_rounding() -> None:
    # With round(x / s) replaced by x / s plus a constant c = level - x0 / s0, which is
    # what "straight through" says, the output is x + c * s: its slope is c * s.
    x, log_step = torch.tensor(2.3, dtype=torch.float64), torch.tensor(-0.3).double()
    at = log_step.clone().requires_grad_()
    fake.fake_quant(x, at, -8, 7).backward()
    c = torch.round(x / log_step.exp()) - x / log_step.exp()
    h = 1e-6
    slope = c * ((log_step + h).exp() - (log_step - h).exp()) / (2 * h)
    torch.testing.assert_close(at.grad, slope, rtol=1e-9, atol=0)


def test_activations_share_one_step() -> None:
    x, log_step = draw(3, 2, 7, 16).bfloat16(), torch.tensor(-3.0)
    x, log_step = x.requires_grad_(), log_step.requires_grad_()
    fake.fake_quant(x, log_step, -128, 127).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert torch.equal(x.grad, torch.ones_like(x))
    s, wide = log_step.detach().exp(), x.detach().float()
    want = s * (torch.round(wide / s) - wide / s).sum()
    # 224 summands below 1/2, in float32 and another order.
    torch.testing.assert_close(log_step.grad, want, rtol=0, atol=224 * 0.5 * 2**-23 * s)


@each_grid
def test_the_first_step_is_the_best_of_all_tried(grid: qat.Grid) -> None:
    w = draw(4, 8, 96)
    w[0] = 0  # any step gives zeros back
    low, high, count = (0.08, 1.15, 72) if grid.group is None else (0.55, 1.2, 40)
    steps = fake.initial_log_step(w, grid)
    rows = w.reshape(8, -1, grid.group or 96)

    def error(at: torch.Tensor) -> torch.Tensor:
        y = fake.fake_quant(rows, at, grid.low, grid.high, grid.half)
        return (y - rows).square().sum(-1, keepdim=True)

    tried = rows.abs().amax(-1, keepdim=True) / -grid.low
    errors = [error((tried * f).log()) for f in np.linspace(low, high, count)]
    best = torch.stack([e.nan_to_num(0) for e in errors]).amin(0)
    # Steps whose logarithm was rounded otherwise move a weight by 2^-22 of itself.
    torch.testing.assert_close(error(steps), best, rtol=1e-5, atol=1e-7)
    assert torch.isfinite(steps).all()
    assert (fake.fake_weight(w, steps, grid)[0] == 0).all()


def test_steps_are_float16_wherever_they_are_used() -> None:
    """Steps of a few times 2^-24, which float16 rounds by a third, tell the difference."""
    w = draw(9, 64, 32) * 2.0**-21
    steps = fake.initial_log_step(w, qat.Grid())
    largest = w.abs().amax(-1, keepdim=True) / 8
    errors = []
    for fraction in torch.linspace(0.55, 1.2, 40).tolist():
        tried = fake.fake_quant(w, (largest * fraction).log(), -8, 7, True)
        errors.append((tried - w).square().sum(-1))
    got = fake.fake_quant(w, steps[:, 0], -8, 7, True)
    assert torch.equal((got - w).square().sum(-1), torch.stack(errors).amin(0))
    # What is packed is what was computed with, and what float32 steps make is another.
    layer = qat.FakeQuantLinear(torch.nn.Linear(32, 64), qat.Grid())
    layer.weight.data, layer.weight_log_step.data = w, steps
    levels, packed = layer.packed()
    assert torch.equal(packed.half().float(), packed)
    assert torch.equal(levels * packed, layer.quantized())
    at = layer.weight_log_step.detach()
    wide = torch.round(w / at[:, 0].exp()).clamp(-8, 7)
    assert not torch.equal(wide, levels.float())


@pytest.mark.parametrize("step", ["search", "ggml"])
def test_what_is_packed_is_what_is_computed_with(step: str) -> None:
    """With the negative steps that ggml makes, too."""
    layer = qat.FakeQuantLinear(torch.nn.Linear(64, 16), qat.Grid(), step=step)
    levels, steps = layer.packed()
    made = levels.reshape(16, 2, 32) * steps[..., None]
    assert torch.equal(made.flatten(1), layer.quantized())
    assert bool((steps < 0).any()) == (step == "ggml")


def test_large_tables_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    w = draw(5, 37, 64)
    whole = fake.initial_log_step(w, qat.Grid())
    monkeypatch.setitem(fake._AT_ONCE, "cpu", 5 * 32)
    assert torch.equal(fake.initial_log_step(w, qat.Grid()), whole)


def test_float16_steps_stay_inside_float16() -> None:
    at = torch.tensor([-40.0, -17.0, 0.3, 20.0])
    steps = fake.step_of(at, half=True)
    assert steps.tolist() == [2.0**-24, 2.0**-24, float(np.float16(np.exp(0.3))), 65504]


def test_ggmls_steps_are_ggmls() -> None:
    w = draw(6, 16, 256)
    w[0, :32] = 0
    weight, log_step, sign = fake.ggml_steps(w)
    packed = gguf.quantize(w.numpy(), gguf.GGMLQuantizationType.Q4_0)
    want = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(weight.numpy(), want)
    again = fake.fake_weight(weight, log_step, qat.Grid(), sign)
    np.testing.assert_array_equal(
        again.numpy(), want
    )  # a step is found by its logarithm
    assert set(sign.flatten().tolist()) == {-1.0, 1.0}
    # halfbyte's own quantizer is the same.
    ours = halfbyte.dequantize(halfbyte.quantize(w.numpy(), "q4_0"))
    np.testing.assert_array_equal(ours, want)


# torch instantiates the function itself while it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@each_grid
def test_layers_compile_as_one_graph(grid: qat.Grid) -> None:
    layer = qat.FakeQuantLinear(torch.nn.Linear(64, 32), grid, static=True)
    layer.input_log_step.data.fill_(-3.0)
    layer.output_log_step.data.fill_(-4.0)
    layer.calibrated = True
    x, found = draw(7, 5, 64).requires_grad_(), []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        x.grad = None
        run(x).square().sum().backward()
        found.append([p.grad.clone() for p in (x, *layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(g.abs().sum() > 0 for g in found[0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiler_meets_the_result_under_one_name() -> None:
    """Under two, torch 2.11 loses its gradient; later ones do not, but trace the same."""
    traced: list[torch.fx.GraphModule] = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> Any:
        traced.append(module)
        return module.forward

    def run(x: torch.Tensor, log_step: torch.Tensor) -> torch.Tensor:
        return fake.fake_quant(x, log_step, -8, 7)

    x, log_step = draw(8, 4, 32).requires_grad_(), torch.zeros(4, 1, requires_grad=True)
    torch.compile(run, backend=backend, fullgraph=True)(x, log_step)
    (module,) = traced
    (applied,) = (n for n in module.graph.nodes if "autograd_function" in n.name)
    forward = module.get_submodule(applied.args[0].target).graph
    result = forward.output_node().all_input_nodes[0].meta["example_value"]
    values = [node.meta.get("example_value") for node in forward.nodes]
    assert result.shape == x.shape
    assert sum(value is result for value in values) == 1


@pytest.mark.parametrize("bits", [1, 3, 16])
def test_only_bits_that_files_hold(bits: int) -> None:
    with pytest.raises(ArgumentError, match=f"expected 2, 4 or 8, got {bits}"):
        qat.Grid(bits)
