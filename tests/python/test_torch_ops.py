# tests/python/test_torch_ops.py
# SPDX-License-Identifier: Apache-2.0
"""The operators of `halfbyte.torch`, against those of `halfbyte` and against autograd.

Values are the same bits as from NumPy in float32, and those rounded once in float16 and
bfloat16, so most comparisons are exact. Gradients are compared with float64 autograd
through the formula; u = 2**-24, and a bound counts roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import halfbyte
import numpy as np
import pytest
import torch
from halfbyte import ArgumentError, DTypeError, ShapeError
from halfbyte.formats import format_info
from halfbyte.lattice import recover
from halfbyte.torch import (
    dequantize,
    embedding_rows,
    gelu_mul,
    linear,
    quantize,
    rms_norm,
    rope,
)
from test_lattice import trained
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.nn import functional as F

OPS = torch.ops.halfbyte
U = 2.0**-24
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
WRITABLE = [f for f in halfbyte.formats() if format_info(f).writable]
SCALED = [f for f in WRITABLE if format_info(f).row_scaled]
ROWS = [1, 2, 7, 64]
N = 19  # a panel of 16 rows and a tail

each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    yield
    torch.set_num_threads(threads)


def smallest(fmt: str) -> int:
    """Return the smallest K, but an odd one where a block is one weight."""
    return max(format_info(fmt).block_len, 3)


def packed(fmt: str, n: int = N, k: int | None = None) -> dict[str, Any]:
    """Return the arguments of `linear` that are the weight."""
    w, scales = quantize(torch.randn(n, k or smallest(fmt)), fmt)
    return {"w": w, "format": fmt, "scales": scales}


def as_numpy(weight: dict[str, Any]) -> halfbyte.Weight:
    k = dequantize(**weight).shape[1]
    scales = weight["scales"]
    data = weight["w"].numpy()
    rows = None if scales is None else scales.numpy()
    return halfbyte.Weight(data, weight["format"], (data.shape[0], k), rows)


def same(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def views(m: int, k: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return inputs that lie in memory in every way there is."""
    wide = torch.randn(m, 2 * k + 3).to(dtype)
    return {
        "contiguous": torch.randn(m, k).to(dtype),
        "rows apart": wide[:, 1 : k + 1],
        "elements apart": wide[:, : 2 * k : 2],
        "transposed": torch.randn(k, m).to(dtype).T,
        "one row for all": torch.randn(1, k).to(dtype).expand(m, k),
        "three dimensions": torch.randn(2, m, k).to(dtype).transpose(0, 1),
        "a vector": torch.randn(k).to(dtype),
        "empty": torch.randn(0, k).to(dtype),
        "negated by a bit": torch.complex(wide, wide).conj().imag[:, :k]
        if dtype == torch.float32
        else -wide[:, :k],
    }


VIEWS = list(views(1, 1))


# ---- what torch itself asks of an operator


def arguments(
    x: Tensor, weight: dict[str, Any], *, steps: bool = False, bias: bool = True
) -> tuple[Any, ...]:
    w, step = weight["w"], torch.tensor(0.125) if steps else None
    added = torch.randn(w.shape[0], requires_grad=True) if bias else None
    return x, w, weight["scales"], None, added, step, step, weight["format"], "auto"


@pytest.mark.parametrize(
    ("fmt", "steps"),
    [(fmt, False) for fmt in WRITABLE] + [(fmt, True) for fmt in SCALED],
)
def test_opcheck_of_linear(fmt: str, steps: bool) -> None:
    x = torch.randn(2, smallest(fmt), requires_grad=True)
    opcheck(OPS.linear, arguments(x, packed(fmt), bias=not steps, steps=steps))


@each_float
@pytest.mark.parametrize("m", ROWS)
def test_opcheck_of_linear_by_rows(m: int, dtype: torch.dtype) -> None:
    x = torch.randn(m, 32).to(dtype).requires_grad_()
    opcheck(OPS.linear, arguments(x, packed("q4_0")))


@pytest.mark.parametrize("view", VIEWS)
def test_opcheck_of_linear_by_layout(view: str) -> None:
    opcheck(OPS.linear, arguments(views(3, 32)[view], packed("q8_0"), bias=False))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 6), torch.float32),
        ((2, 6), torch.float16),
        ((7, 3), torch.bfloat16),
        ((2, 64, 5), torch.float32),
        ((0, 4), torch.float16),
    ],
    ids=str,
)
def test_opcheck_of_operations_over_rows(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2].requires_grad_()
    weight = torch.randn(shape[-1], requires_grad=True)
    opcheck(OPS.rms_norm, (x, weight, 1e-6))
    opcheck(OPS.rms_norm, (y, None, 1e-6))
    opcheck(OPS.gelu_mul, (x, y))
    heads = torch.randn(*shape, 8).to(dtype).requires_grad_()
    at = torch.arange(heads[..., 0, 0].numel()).reshape(shape[:-1])
    opcheck(OPS.rope, (heads, at, 1e4, 6, 1.0))


@pytest.mark.parametrize("fmt", WRITABLE)
def test_opcheck_of_packing(fmt: str) -> None:
    dense = torch.randn(N, smallest(fmt))
    for x in (dense, dense.bfloat16(), dense[::2], dense[:0]):
        opcheck(OPS.quantize, (x, fmt))
    w, scales = quantize(dense, fmt)
    opcheck(OPS.dequantize, (w, scales, fmt))
    for ids in (torch.tensor([[0, 18], [3, 3]]), torch.tensor(7), torch.arange(0)):
        opcheck(OPS.embedding_rows, (ids, w, scales, fmt))


# ---- linear


@pytest.mark.parametrize("activations", ["auto", "f32"])
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("fmt", WRITABLE)
def test_float32_is_the_bits_that_numpy_gets(
    fmt: str, m: int, activations: str
) -> None:
    weight, bias = packed(fmt), torch.randn(N)
    for name, x in views(m, smallest(fmt)).items():
        got = linear(x, bias=bias, activations=activations, **weight)
        want = halfbyte.linear(
            x.resolve_neg().numpy(),
            as_numpy(weight),
            bias=bias.numpy(),
            activations=activations,
        )
        assert got.shape == (*x.shape[:-1], N), name
        same(got, torch.from_numpy(want))


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("fmt", WRITABLE)
def test_16_bits_are_computed_in_float32_and_rounded_once(
    fmt: str, dtype: torch.dtype
) -> None:
    weight, bias = packed(fmt), torch.randn(N)
    for m in ROWS:
        for x in views(m, smallest(fmt), dtype).values():
            want = linear(x.float(), bias=bias, **weight).to(dtype)
            same(linear(x, bias=bias, **weight), want)
    bias = bias.to(dtype)
    want = linear(x.float(), bias=bias.float(), **weight).to(dtype)
    same(linear(x, bias=bias, **weight), want)


@pytest.mark.parametrize("fmt", SCALED)
def test_trained_steps_round_what_goes_in_and_out(fmt: str) -> None:
    weight, x = packed(fmt, k=64), 3 * torch.randn(7, 64)
    x_step, y_step = torch.tensor(0.0625), torch.tensor(0.25)
    codes = (x / x_step).round().clamp(-128, 127)
    # Sums of 64 products of codes below 2**7 are exact in float64.
    levels = dequantize(weight["w"], fmt, scales=torch.ones(N)).double()
    sums = (codes.double() @ levels.T).float()
    y = sums * (weight["scales"] * x_step)
    got = linear(x, x_step=x_step, **weight)
    same(got, y)
    rounded = (y / y_step).round().clamp(-128, 127) * y_step
    same(linear(x, x_step=x_step, y_step=y_step, **weight), rounded)
    none = torch.tensor(0.0)
    same(linear(x, x_step=none, y_step=none, **weight), linear(x, **weight))


@each_float
@pytest.mark.parametrize("m", [1, 7])
def test_any_number_of_threads_gives_the_same_bits(m: int, dtype: torch.dtype) -> None:
    weight, x = packed("q4_0", n=700, k=512), torch.randn(m, 512).to(dtype)
    torch.set_num_threads(1)
    want = linear(x, **weight)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        same(linear(x, **weight), want)
        with halfbyte.threads(8 - count):
            same(linear(x, **weight), want)


@pytest.mark.parametrize("count", [1, 2])
def test_flushing_subnormals_is_for_torch_alone(count: int) -> None:
    # It is a mode of the thread that asked, which is one of several that multiply.
    weight, x = packed("f32", n=4096, k=64), torch.full((1, 64), 1e-38)
    with halfbyte.threads(count):
        want = linear(x, **weight)
        assert (want.abs() < 1.17e-38).sum() > 100
        assert torch.set_flush_denormal(True)
        try:
            for _ in range(10):
                same(linear(x, **weight), want)
        finally:
            torch.set_flush_denormal(False)


def test_torchs_number_of_threads_counts_until_halfbyte_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from halfbyte.torch import _dispatch

    monkeypatch.delenv("HALFBYTE_NUM_THREADS", raising=False)
    halfbyte.set_num_threads(None)
    torch.set_num_threads(3)
    assert _dispatch.num_threads() == 3
    with halfbyte.threads(2):
        assert _dispatch.num_threads() == 2


@each_float
@pytest.mark.parametrize("fmt", WRITABLE)
def test_the_inputs_gradient_is_that_of_the_dequantized_matrix(
    fmt: str, dtype: torch.dtype
) -> None:
    weight = packed(fmt)
    dense = dequantize(**weight).to(dtype)
    for shape in [(2,), (2, 3), ()]:
        x = torch.randn(*shape, smallest(fmt)).to(dtype).requires_grad_()
        grad = torch.randn(*shape, N).to(dtype)
        (got,) = torch.autograd.grad(linear(x, **weight), x, grad)
        (want,) = torch.autograd.grad(x @ dense.T, x, grad)
        same(got, want)


@pytest.mark.filterwarnings("ignore:Input #0 requires gradient and is not a double")
@pytest.mark.parametrize("fmt", WRITABLE)
def test_gradcheck(fmt: str) -> None:
    """Of the product without rounded activations, which is linear in its input.

    So a difference quotient is the gradient at any distance, but for the rounding of the
    two sums: with a distance of 1 as much as theirs. No operator takes float64.
    """
    weight = packed(fmt)
    k = smallest(fmt)
    x = torch.randn(2, k, requires_grad=True)
    terms = (x.detach().abs() + 1) @ dequantize(**weight).abs().T
    assert torch.autograd.gradcheck(
        lambda x: linear(x, activations="f32", **weight),
        x,
        eps=1.0,
        atol=float((k + 2) * U * terms.max()),
        rtol=0,
        nondet_tol=0.0,
    )


def test_the_gradient_can_be_differentiated() -> None:
    weight, x = packed("q8_0"), torch.randn(2, 32, requires_grad=True)
    dense, v = dequantize(**weight), torch.randn(2, 32)
    grad = torch.randn(2, N, requires_grad=True)
    (gx,) = torch.autograd.grad(linear(x, **weight), x, grad, create_graph=True)
    (got,) = torch.autograd.grad(gx, grad, v)
    torch.testing.assert_close(got, v @ dense.T, rtol=0, atol=32 * U * 32)


@each_float
def test_the_gradient_of_a_bias(dtype: torch.dtype) -> None:
    weight, x = packed("q4_0"), torch.randn(2, 3, 32).to(dtype)
    bias = torch.randn(N, requires_grad=True)
    grad = torch.randn(2, 3, N).to(dtype)
    linear(x, bias=bias, **weight).backward(grad)
    assert bias.grad is not None
    assert bias.grad.dtype == torch.float32
    want = grad.double().sum((0, 1))
    bound = 6 * U * grad.double().abs().sum((0, 1))  # five sums
    assert ((bias.grad - want).abs() <= bound).all()


# ---- packing


def test_trained_weights_keep_their_levels() -> None:
    x = trained(5, 16, 128)[0]
    wide = torch.from_numpy(x)
    want = recover(x).weight.data
    for stored in (wide.bfloat16(), wide.half(), wide):  # all of them the same numbers
        np.testing.assert_array_equal(stored.float().numpy(), x)
        w, _ = quantize(stored, "q4_0")
        np.testing.assert_array_equal(w.numpy().reshape(-1), want)
    wide[0, 0] *= 1 + 2**-20  # no number that training in bfloat16 leaves
    plain = halfbyte.quantize(wide.numpy(), "q4_0").data
    assert not np.array_equal(plain, want)
    np.testing.assert_array_equal(quantize(wide, "q4_0")[0].numpy().reshape(-1), plain)


@each_float
@pytest.mark.parametrize("fmt", WRITABLE)
def test_packing_is_that_of_numpy(fmt: str, dtype: torch.dtype) -> None:
    dense = torch.randn(N, 2 * smallest(fmt)).to(dtype).requires_grad_()
    w, scales = quantize(dense, fmt)
    want = halfbyte.quantize(dense.detach().float().numpy(), fmt)
    assert w.shape[0] == N
    np.testing.assert_array_equal(w.numpy().reshape(-1), want.data)
    if fmt in SCALED:
        assert scales is not None
        np.testing.assert_array_equal(scales.numpy(), want.scales)
    else:
        assert scales is None
    unpacked = torch.from_numpy(want.dequantize())
    same(dequantize(w, fmt, scales=scales), unpacked)
    for ids in (torch.tensor([[0, 18], [3, 3]]), torch.tensor(7), torch.arange(0)):
        same(embedding_rows(ids, w, fmt, scales=scales), unpacked[ids])
        same(embedding_rows(ids.int(), w, fmt, scales=scales), unpacked[ids])


def test_several_scales_a_row() -> None:
    w, _ = quantize(torch.randn(5, 128), "w4")
    levels = dequantize(w, "w4", scales=torch.ones(5))
    scales = torch.rand(5, 4)
    ids = torch.tensor([[4, 0, 4]])
    want = (levels.view(5, 4, 32) * scales.unsqueeze(-1)).view(5, 128)
    same(dequantize(w, "w4", scales=scales), want)
    same(embedding_rows(ids, w, "w4", scales=scales), want[ids])
    one = scales[:, :1]
    same(embedding_rows(ids, w, "w4", scales=one), (levels * one)[ids])


# ---- norm, rotary embedding, gate


def heads(x: Tensor) -> Tensor:
    """Make (..., 2 heads, 8) of (..., 16)."""
    return x.unflatten(-1, (2, 8))


def positions(x: Tensor) -> Tensor:
    return torch.arange(x[..., 0].numel()).reshape(x.shape[:-1])


ROWWISE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any]]] = {
    "rms_norm": (rms_norm, halfbyte.rms_norm),
    "gelu_mul": (lambda x: gelu_mul(x, x), lambda x: halfbyte.gelu_mul(x, x)),
    "rope": (
        lambda x: rope(heads(x), positions(x), rotary_dims=6).flatten(-2),
        lambda x: halfbyte.rope(
            x.reshape(-1, 2, 8), np.arange(x.size // 16), rotary_dims=6
        ).reshape(x.shape),
    ),
}


@each_float
@pytest.mark.parametrize("op", list(ROWWISE))
def test_operations_over_rows_are_those_of_numpy(op: str, dtype: torch.dtype) -> None:
    ours, numpys = ROWWISE[op]
    for x in views(5, 16, dtype).values():
        want = torch.from_numpy(numpys(x.resolve_neg().float().numpy()))
        same(ours(x), want.to(dtype))


def test_norm_takes_a_weight_of_any_float() -> None:
    x, w, eps = torch.randn(3, 16), torch.randn(16), 1e-3
    want = torch.from_numpy(halfbyte.rms_norm(x.numpy(), w.numpy(), eps=eps))
    same(rms_norm(x, w, eps=eps), want)
    rounded = w.bfloat16()
    same(rms_norm(x, rounded), rms_norm(x, rounded.float()))


def gradients(y: Tensor, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, inputs, grad.to(y.dtype)))


@pytest.mark.parametrize("k", [1, 7, 64])
def test_the_gradients_of_the_norm(k: int) -> None:
    x, w = torch.randn(5, k, requires_grad=True), torch.randn(k, requires_grad=True)
    grad, eps = torch.randn(5, k), 1e-3
    got_x, got_w = gradients(rms_norm(x, w, eps=eps), [x, w], grad)
    wide, wide_w = x.detach().double().requires_grad_(), w.detach().double()
    wide_w.requires_grad_()
    r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    want_x, want_w = gradients(wide * r * wide_w, [wide, wide_w], grad)
    # Means of K terms have K + 1 roundings; r has half of those of its mean and 3 more,
    # and is there three times; the other factors make up the rest.
    g = (grad.double() * wide_w).abs()
    terms = r * g + wide.abs() * r**3 * (g * wide.abs()).mean(-1, keepdim=True)
    assert ((got_x - want_x).abs() <= (2.5 * k + 20) * U * terms).all()
    terms = (grad.double() * wide * r).abs().sum(0)
    assert ((got_w - want_w).abs() <= (k + 15) * U * terms).all()


def test_the_gradient_of_rope_turns_back() -> None:
    x, at = torch.randn(4, 2, 8, requires_grad=True), torch.tensor([0, 1, 70, 4096])
    options: dict[str, Any] = {"freq_base": 100.0, "rotary_dims": 6, "freq_scale": 0.5}
    grad = torch.randn(4, 2, 8)
    (got,) = gradients(rope(x, at, **options), [x], grad)
    wide = x.detach().double().requires_grad_()
    angle = at[:, None, None] * 0.5 * 100.0 ** (-2 * torch.arange(3) / 8).double()
    a, b = wide[..., :3], wide[..., 4:7]
    cos, sin = angle.cos(), angle.sin()
    turned = [a * cos - b * sin, wide[..., 3:4], b * cos + a * sin, wide[..., 7:]]
    (want,) = gradients(torch.cat(turned, -1), [wide], grad)
    half = grad[..., :4].abs() + grad[..., 4:].abs()
    bound = 4.6 * U * torch.cat([half, half], -1)  # as forward: tests of test_ops.py
    assert ((got - want).abs() <= bound).all()
    assert not torch.equal(got, grad)


def test_the_gradients_of_the_gate() -> None:
    gate = (3 * torch.randn(7, 16)).requires_grad_()
    up, grad = torch.randn(7, 16, requires_grad=True), torch.randn(7, 16)
    got = gradients(gelu_mul(gate, up), [gate, up], grad)
    wide = [t.detach().double().requires_grad_() for t in (gate, up)]
    want = gradients(F.gelu(wide[0], approximate="tanh") * wide[1], wide, grad)
    # gelu(a) = a (1 + tanh v) / 2 with v = 0.8 (a + 0.045 a^3): its parts are at most
    # 1 and |a|, those of its derivative 1 and |v'| |a|, each of at most 16 roundings,
    # the ones in v blown up by v itself.
    a = wide[0].detach().abs()
    size = (grad * up).abs() * (1 + a * (0.8 + 0.11 * a**2)) * (1 + a)
    assert ((got[0] - want[0]).abs() <= 16 * U * size).all()
    assert ((got[1] - want[1]).abs() <= 16 * U * grad.abs() * a * (1 + a)).all()


OTHER = torch.linspace(-2, 2, 48).bfloat16().half().view(3, 16)  # exact in both
DIFFERENTIATED: dict[str, Callable[[Tensor], Tensor]] = {
    "rms_norm": rms_norm,
    "gate": lambda x: gelu_mul(x, OTHER.to(x.dtype)),
    "up": lambda x: gelu_mul(OTHER.to(x.dtype), x),
    "rope": ROWWISE["rope"][0],
}


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("op", list(DIFFERENTIATED))
def test_gradients_in_16_bits_are_those_of_float32_rounded_once(
    op: str, dtype: torch.dtype
) -> None:
    x, grad = torch.randn(3, 16).to(dtype), torch.randn(3, 16).to(dtype)
    narrow, wide = x.clone().requires_grad_(), x.float().requires_grad_()
    (got,) = gradients(DIFFERENTIATED[op](narrow), [narrow], grad)
    (want,) = gradients(DIFFERENTIATED[op](wide), [wide], grad)
    same(got, want.to(dtype))


# ---- tensors of files, which may begin anywhere


def odd(x: Tensor) -> Tensor:
    """`x` between two addresses of its type, as in a file with an odd header."""
    data = bytearray(x.nbytes + 1)
    return torch.frombuffer(data, dtype=x.dtype, offset=1).view(x.shape).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fmt", ["q4_0", "w4"])
def test_weights_may_begin_anywhere(fmt: str, dtype: torch.dtype) -> None:
    x = torch.randn(N, 64).to(dtype)
    for got, want in zip(quantize(odd(x), fmt), quantize(x, fmt), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            same(got, want)


@pytest.mark.parametrize("fmt", ["w8", "f32", "bf16"])
def test_scales_biases_and_norms_may_begin_anywhere(fmt: str) -> None:
    weight, bias, x = packed(fmt, k=64), torch.randn(N), torch.randn(2, 64)
    moved = {
        name: odd(part) if isinstance(part, Tensor) else part
        for name, part in weight.items()
    }
    same(linear(x, **moved, bias=odd(bias)), linear(x, **weight, bias=bias))
    factor = torch.randn(64)
    same(rms_norm(x, odd(factor)), rms_norm(x, factor))


# ---- what is refused

K = 32
GOOD = torch.ones(3, K)
ODD = odd(torch.ones(1, K))
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "double": (
        lambda w: linear(GOOD.double(), **w),
        DTypeError,
        r"x: expected float32, .*got torch.float64: call .float\(\)",
    ),
    "integers": (lambda w: linear(GOOD.int(), **w), DTypeError, "got torch.int32"),
    "no dimension": (
        lambda w: linear(torch.tensor(1.0), **w),
        ShapeError,
        "x: expected at least one dimension",
    ),
    "K": (
        lambda w: linear(GOOD[:, 1:], **w),
        ShapeError,
        r"x: expected shape \(..., 32\), got \(3, 31\)",
    ),
    "bias": (
        lambda w: linear(GOOD, bias=torch.ones(N + 1), **w),
        ShapeError,
        r"bias: expected shape \(19,\), got \(20,\)",
    ),
    "double bias": (
        lambda w: linear(GOOD, bias=torch.ones(N).double(), **w),
        DTypeError,
        "bias: expected float32, float16 or bfloat16, got torch.float64",
    ),
    "activations": (
        lambda w: linear(GOOD, activations="int8", **w),
        ArgumentError,
        "activations: found 'int8'; expected auto or f32",
    ),
    "format": (
        lambda w: linear(GOOD, **w | {"format": "q9"}),
        ArgumentError,
        "format: expected one of",
    ),
    "no tensor": (
        lambda w: linear([1.0] * K, **w),
        DTypeError,
        "x: expected a tensor, got list",
    ),
    "no tensor of biases": (
        lambda w: linear(GOOD, bias=[1.0] * N, **w),
        DTypeError,
        "bias: expected a tensor, got list",
    ),
    "no format": (
        lambda w: linear(GOOD, **w | {"format": 3}),
        DTypeError,
        "format: expected a str, got int",
    ),
    "no matrix to pack": (
        lambda _: quantize([[1.0] * K], "q4_0"),
        DTypeError,
        "x: expected a tensor, got list",
    ),
    "no matrix to unpack": (
        lambda _: dequantize([[0] * 18], "q4_0"),
        DTypeError,
        "w: expected a tensor, got list",
    ),
    "no tensor of ids": (
        lambda w: embedding_rows([0], **w),
        DTypeError,
        "ids: expected a tensor, got list",
    ),
    "no tensor to norm": (
        lambda _: rms_norm([1.0]),
        DTypeError,
        "x: expected a tensor, got list",
    ),
    "no number": (
        lambda _: rms_norm(GOOD, eps="a"),
        DTypeError,
        "eps: expected a number, got str",
    ),
    "no gate": (
        lambda _: gelu_mul([1.0], GOOD),
        DTypeError,
        "gate: expected a tensor, got list",
    ),
    "no base": (
        lambda _: rope(GOOD, torch.tensor(0), freq_base="a"),
        DTypeError,
        "freq_base: expected a number, got str",
    ),
    "no dimensions": (
        lambda _: rope(GOOD, torch.tensor(0), rotary_dims=1.5),
        DTypeError,
        "rotary_dims: expected a whole number, got float",
    ),
    "float weight": (
        lambda w: linear(GOOD, **w | {"w": w["w"].float()}),
        ShapeError,
        "w: expected a uint8 matrix, got torch.float32",
    ),
    "flat weight": (
        lambda w: linear(GOOD, **w | {"w": w["w"].flatten()}),
        ShapeError,
        "w: expected a uint8 matrix",
    ),
    "half a block": (
        lambda w: linear(GOOD, **w | {"w": w["w"].repeat(1, 2)[:, :50].contiguous()}),
        ShapeError,
        "(w|x): expected",
    ),
    "weight with gaps": (
        lambda w: linear(GOOD, **w | {"w": w["w"].T.contiguous().T}),
        ShapeError,
        r"w: expected a contiguous matrix.*call .contiguous\(\)",
    ),
    "no scales": (
        lambda w: linear(GOOD, **w | {"scales": None}),
        DTypeError,
        "scales: expected float32, one a row of w8, got None",
    ),
    "double scales": (
        lambda w: linear(GOOD, **w | {"scales": w["scales"].double()}),
        DTypeError,
        "scales: expected float32, one a row of w8, got torch.float64",
    ),
    "scales": (
        lambda w: linear(GOOD, **w | {"scales": w["scales"][1:]}),
        ShapeError,
        "scales: expected",
    ),
    "a step below 0": (
        lambda w: linear(GOOD, x_step=torch.tensor(-1.0), **w),
        ArgumentError,
        "x_step: expected a finite number from 0, got -1.0",
    ),
    "steps of blocks": (
        lambda _: linear(GOOD, y_step=torch.tensor(1.0), **packed("q4_0")),
        ArgumentError,
        "y_step: q4_0 has no scale a row",
    ),
    "panels": (
        lambda w: linear(GOOD, panels=torch.zeros(3, dtype=torch.uint8), **w),
        ShapeError,
        "panels: expected those of w",
    ),
    "unwritable": (
        lambda _: quantize(torch.ones(1, 256), "q4_k"),
        ArgumentError,
        "format: q4_k can only be read",
    ),
    "part of a block": (
        lambda _: quantize(torch.ones(1, 33), "q4_0"),
        ShapeError,
        "x: expected shape .N, a multiple of 32. for q4_0",
    ),
    "float ids": (
        lambda w: embedding_rows(torch.ones(2), **w),
        DTypeError,
        "ids: expected integers, got torch.float32",
    ),
    "an id": (
        lambda w: embedding_rows(torch.tensor([0, N]), **w),
        ArgumentError,
        "ids: position 1: found 19; expected 0 to 19, exclusive",
    ),
    "groups": (
        lambda w: dequantize(w["w"], "w8", scales=torch.ones(N, 3)),
        ShapeError,
        "scales: expected 19 rows of a divisor of 32",
    ),
    "alignment": (
        lambda w: linear(ODD, **w),
        ShapeError,
        "x: expected elements aligned to their size; pass a copy",
    ),
    "alignment of rows": (
        lambda _: rms_norm(ODD),
        ShapeError,
        "x: expected elements aligned to 4 bytes; pass a copy",
    ),
    "norm": (
        lambda _: rms_norm(GOOD, torch.ones(K + 1)),
        ShapeError,
        r"weight: expected shape \(32,\), got \(33,\)",
    ),
    "eps": (
        lambda _: rms_norm(GOOD, eps=-1.0),
        ArgumentError,
        "eps: expected a finite number, 0 or more, got -1.0",
    ),
    "gate": (
        lambda _: gelu_mul(GOOD, GOOD[1:]),
        ShapeError,
        r"up: expected shape \(3, 32\), got \(2, 32\)",
    ),
    "heads": (
        lambda _: rope(GOOD[:, :31], torch.tensor(0)),
        ShapeError,
        r"x: expected shape \(..., heads, even head_dim\), got \(3, 31\)",
    ),
    "positions": (
        lambda _: rope(GOOD, torch.tensor([0])),
        ShapeError,
        r"positions: expected shape \(\), got \(1,\)",
    ),
    "a position": (
        lambda _: rope(GOOD, torch.tensor(-1)),
        ArgumentError,
        "positions: position 0: found -1",
    ),
    "float positions": (
        lambda _: rope(GOOD, torch.tensor(1.0)),
        DTypeError,
        "positions: expected integers",
    ),
    "rotary_dims": (
        lambda _: rope(GOOD, torch.tensor(0), rotary_dims=34),
        ArgumentError,
        "rotary_dims: expected an even number up to 32, got 34",
    ),
    "freq_base": (
        lambda _: rope(GOOD, torch.tensor(0), freq_base=0.0),
        ArgumentError,
        "freq_base: expected a finite number above 0",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_argument_is_named_in_one_line(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message) as caught:
        call(packed("w8", k=K))
    assert "\n" not in str(caught.value)


EVERY: dict[str, Callable[[Tensor], Any]] = {
    "linear": lambda x: linear(x, **packed("q4_0")),
    "quantize": lambda x: quantize(x, "q4_0"),
    "dequantize": lambda x: dequantize(x.to(torch.uint8), "w8", scales=torch.ones(3)),
    "embedding_rows": lambda x: embedding_rows(x.long(), **packed("q4_0")),
    "rms_norm": rms_norm,
    "gelu_mul": lambda x: gelu_mul(GOOD, x),
    "rope": lambda x: rope(x, torch.tensor(0)),
}


@pytest.mark.parametrize("op", list(EVERY))
def test_tensors_elsewhere_are_refused_in_our_words(op: str) -> None:
    # A sparse tensor has no kernel of ours, like one of a GPU: the same refusal is
    # registered for every backend.
    with pytest.raises(ArgumentError, match=rf"halfbyte.torch.{op}: .*to_dense\(\)"):
        EVERY[op](GOOD.to_sparse())
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(
        f"halfbyte::{op}", "CUDA"
    )


def test_the_kernel_of_another_device_names_it() -> None:
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(
        ArgumentError, match=r"halfbyte.torch.gelu_mul: .*call .cpu\(\)"
    ):
        OPS.gelu_mul.default.redispatch(cuda, GOOD, GOOD)


@pytest.mark.parametrize("op", ["linear", "quantize", "rms_norm", "gelu_mul", "rope"])
def test_tracing_with_a_tensor_of_a_gpu_is_refused(op: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.ones(3, K, device="cuda")
        with pytest.raises(ArgumentError, match=r"got cuda:0: call .cpu\(\)"):
            OPS.gelu_mul(x, x) if op == "gelu_mul" else EVERY[op](x)


def test_meta_tensors_go_through() -> None:
    weight = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in
              packed("w8", k=K).items()}  # fmt: skip
    assert linear(GOOD.to("meta"), **weight).shape == (3, N)
    assert dequantize(**weight).shape == (N, K)
    assert rms_norm(GOOD.to("meta")).is_meta
