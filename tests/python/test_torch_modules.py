# tests/python/test_torch_modules.py
# SPDX-License-Identifier: Apache-2.0
"""`QuantLinear` and `QuantEmbedding`: what becomes of their bytes, and who may use them.

What they compute is what the operators compute, bit for bit: test_torch_ops.py.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import halfbyte
import peft
import pytest
import tiny
import torch
from halfbyte import ArgumentError, DTypeError, ShapeError
from halfbyte.formats import format_info
from halfbyte.torch import (
    QuantEmbedding,
    QuantLinear,
    linear,
    ops,
    quantize,
    rms_norm,
)
from halfbyte.torch.experts import QuantExperts
from halfbyte.torch.fused import FusedRotary, Turns
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from transformers.integrations.gemma_quant import QuantizedEmbedding

WRITABLE = [f for f in halfbyte.formats() if format_info(f).writable]
K, N = 256, 19  # whole blocks of every format; a panel of 16 rows and a tail

each_format = pytest.mark.parametrize("fmt", WRITABLE)
# torch's own compiler imports a module of torch that is deprecated.
compiles = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(3)
    yield
    torch.compiler.reset()


def layer(fmt: str = "q4_0", *, bias: bool = True, k: int = K) -> QuantLinear:
    return QuantLinear.from_linear(nn.Linear(k, N, bias=bias), fmt)


def static(fmt: str = "w4", steps: tuple[float, float] = (0.05, 0.1)) -> QuantLinear:
    w, scale = quantize(torch.randn(N, K), fmt)
    both = (torch.tensor(steps[0]), torch.tensor(steps[1]))
    return QuantLinear.from_packed(w, fmt, scale=scale, steps=both)


def bytes_of(fmt: str) -> Tensor:
    return quantize(torch.ones(4, 32), fmt)[0]


def product_of_ones(**options: Any) -> Tensor:
    return linear(
        torch.ones(2, 32), bytes_of("w8"), "w8", scales=torch.ones(4), **options
    )


def half_filled(missing: str) -> QuantLinear:
    """A skeleton whose state dict lacked a tensor."""
    skeleton = QuantLinear(K, N, "w8", bias=True, device="meta")
    state = layer("w8").state_dict()
    del state[missing]
    skeleton.load_state_dict(state, assign=True, strict=False)
    return skeleton


def experts() -> QuantExperts:
    return QuantExperts(2, 32, 32, ("q4_0", "q4_0"), nn.functional.gelu)


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0)


# ---- one answer, whichever way it is reached


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@each_format
def test_the_short_way_gives_the_bits_of_the_operator(
    fmt: str, dtype: torch.dtype
) -> None:
    module = layer(fmt)
    for shape in [(K,), (1, K), (2, 3, K), (0, K)]:
        x = torch.randn(shape).to(dtype)
        want = linear(
            x, module.weight, fmt, scales=module.weight_scale, bias=module.bias
        )
        same(module(x), want)
        same(module(x.clone().requires_grad_()).detach(), want)
        module.repack()
        same(module(x), want)
        same(module(x.clone().requires_grad_()).detach(), want)


def test_what_is_no_plain_memory_goes_the_long_way() -> None:
    module, x = layer(), torch.randn(2, K)
    negated = torch._neg_view(x)  # by a bit; the memory holds x
    assert negated.is_neg()
    same(module(negated), module(-x))
    same(module(nn.Parameter(x)).detach(), module(x))


def test_a_gradient_flows_where_only_the_bias_is_trained() -> None:
    module = layer()
    assert module.bias is not None
    assert not module(torch.randn(2, K)).requires_grad
    module.bias.requires_grad_()
    module(torch.randn(2, K)).sum().backward()
    same(module.bias.grad, torch.full((N,), 2.0))
    with torch.no_grad():
        before = module(torch.zeros(1, K))
        module.bias += 1
        same(module(torch.zeros(1, K)), before + 1)


def test_a_watching_mode_sees_the_operator() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        seen: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kw: Any = None
        ) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kw or {}))

    module, x = layer(), torch.randn(1, K)
    with Watch() as watch:
        y = module(x)
    assert "halfbyte.linear.default" in watch.seen
    same(y, module(x))


def stack() -> nn.Module:
    first = QuantLinear.from_linear(nn.Linear(K, K), "q4_0").repack()
    last = QuantLinear.from_linear(nn.Linear(N, 7), "f32")
    return nn.Sequential(first, nn.GELU(), static(), last)


@compiles
def test_compile_of_the_whole_graph() -> None:
    module = stack()
    compiled = torch.compile(module, fullgraph=True)
    for rows in (3, 5):
        x = torch.randn(rows, K)
        # Compiled GELU may differ in its last bits, and static codes then by one step.
        got, want = compiled(x), module(x)
        step = 0.1 * float(module[3].dequantize().abs().sum(1).max())
        torch.testing.assert_close(got, want, rtol=0, atol=step)
        assert (got - want).abs().median() < 1e-5
    x = torch.randn(2, K, requires_grad=True)
    (got,) = torch.autograd.grad(compiled(x).sum(), x)
    (want,) = torch.autograd.grad(module(x).sum(), x)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_export_and_run() -> None:
    module, x = stack(), torch.randn(3, K)
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: rows},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("halfbyte.linear.default") == 3
    for count in (3, 9):
        x = torch.randn(count, K)
        same(program.module()(x), module(x))


def test_an_exported_program_takes_other_weights() -> None:
    """It would go on with the first ones, in the order of `repack`."""
    module, other = (nn.Sequential(layer("w4").repack()) for _ in range(2))
    x = torch.randn(3, K)
    program = torch.export.export(module, (x,))
    exported = program.module()
    same(exported(x), module(x))
    exported.load_state_dict(other.state_dict())
    same(exported(x), other(x))


# ---- memory


def test_nothing_is_copied_on_the_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(ops._core, "Weight", lambda *args: seen.append(args))
    w, scale = quantize(torch.randn(N, K), "w4")
    assert scale is not None
    module = QuantLinear.from_packed(w, "w4", scale=scale)
    data, scales = seen[0][0], seen[0][4]
    assert data.ctypes.data == w.data_ptr() == module.weight.data_ptr()
    assert scales.ctypes.data == scale.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_activations_are_read_where_they_lie(dtype: torch.dtype) -> None:
    class Spy:
        def linear_at(self, *args: Any) -> None:
            self.args = args

    wide = torch.randn(4, 2 * K).to(dtype)
    for x, ld in ((wide[:, 3 : K + 3], 2 * K), (wide.view(8, K), K)):
        spy: Any = Spy()
        y = ops.product(spy, (N, K), x, None, "auto")
        at, _, rows, x_ld, _, out, *_ = spy.args
        assert (at, rows, x_ld) == (x.data_ptr(), len(x), ld)
        assert out == y.data_ptr()


def test_bytes_changed_in_place_are_seen() -> None:
    module, x = layer("q8_0", bias=False), torch.randn(2, K)
    module(x)
    module.weight.zero_()
    same(module(x), torch.zeros(2, N))


def test_memory_does_not_grow() -> None:
    code = """
import torch
from halfbyte import targets
from halfbyte.torch import QuantLinear
w = torch.randint(0, 255, (4096, 65536), dtype=torch.uint8)  # 256 MiB
QuantLinear.from_packed(w[:16], "w8", scale=torch.ones(16))(torch.ones(1, 65536))
before = targets.peak_rss()
module = QuantLinear.from_packed(w, "w8", scale=torch.ones(4096))
for dtype in (torch.float32, torch.bfloat16):
    module(torch.ones(1, 65536, dtype=dtype))
print((targets.peak_rss() - before) >> 20)
"""
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, check=True, capture_output=True, timeout=120)
    assert int(done.stdout) < 32  # MiB: a tile of rows a thread, and the activations


# ---- the life of the bytes


@each_format
def test_a_state_dict_survives_safetensors(fmt: str, tmp_path: Path) -> None:
    module, x = layer(fmt).repack(), torch.randn(2, K)
    save_file(module.state_dict(), tmp_path / "layer.safetensors")
    state = load_file(tmp_path / "layer.safetensors")
    assert "panels" not in state
    filled = QuantLinear(K, N, fmt, bias=True)
    filled.load_state_dict(state)
    assigned = QuantLinear(K, N, fmt, bias=True, device="meta")
    assigned.load_state_dict(state, assign=True)
    for other in (filled, assigned):
        same(other(x), module(x))
        assert type(other.weight) is type(module.weight)


@pytest.mark.parametrize("make", [layer, static])
def test_copies_and_pickles(make: Any) -> None:
    module, x = make(), torch.randn(2, K)
    want, size = module(x), len(pickle.dumps(module))
    module.repack()
    assert len(pickle.dumps(module)) == size  # without panels
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.weight.data_ptr() != module.weight.data_ptr()
        assert other.panels is None
        same(other(x), want)
        assert type(other.weight) is type(module.weight)
    assert module.panels is not None


def test_casts_leave_everything_as_it_is() -> None:
    module, x = static("w8").repack(), torch.randn(2, K)
    embedding = QuantEmbedding.from_packed(
        module.weight, "w8", scale=module.weight_scale
    )
    both = nn.ModuleList([module, embedding])
    before = {name: t.clone() for name, t in both.state_dict().items()}
    want, addresses = module(x), [t.data_ptr() for t in both.state_dict().values()]
    for cast in ("half", "bfloat16", "double", "float"):
        getattr(both, cast)()
        for name, tensor in both.state_dict().items():
            assert tensor.dtype == before[name].dtype, name
            same(tensor, before[name])
        assert [t.data_ptr() for t in both.state_dict().values()] == addresses
        assert module.panels is not None
        same(module(x), want)


def test_rows_follow_a_cast_as_those_of_a_dense_table_do() -> None:
    packed = static("w8")
    table = QuantEmbedding.from_packed(packed.weight, "w8", scale=packed.weight_scale)
    ids = torch.tensor([1, 0])
    want = table(ids)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        same(table.to(dtype)(ids), want.to(dtype))
        same(table.to(torch.float64)(ids), want.to(dtype))  # no type of ours


def test_meta_and_back() -> None:
    module, x = layer(), torch.randn(2, K)
    want, state = module(x), copy.deepcopy(module.state_dict())
    module.repack().to("meta", torch.float16)
    assert all(p.is_meta for p in module.parameters())
    assert module.panels is None
    assert module(x.to("meta")).shape == (2, N)
    module.to_empty(device="cpu").load_state_dict(state)
    same(module(x), want)


def test_shared_memory_is_read_where_it_is() -> None:
    module, x = layer().repack(), torch.randn(2, K)
    want = module(x)
    module.share_memory()
    assert module.weight.is_shared()
    same(module(x), want)


@pytest.mark.parametrize("how", ["load", "assign", "set", "functional"])
def test_new_bytes_are_used_after_the_first_forward(how: str) -> None:
    module, other, x = layer(), layer(), torch.randn(2, K)
    module.repack()(x)
    if how == "functional":
        for lent in (x, x.clone().requires_grad_()):
            got = torch.func.functional_call(module, other.state_dict(), (lent,))
            same(got.detach(), other(x))
        assert module.panels is not None
        return
    if how == "set":
        module.weight, module.bias = other.weight, other.bias
    else:
        module.load_state_dict(other.state_dict(), assign=how == "assign")
    same(module(x), other(x))
    assert module.panels is None
    y = module(x.clone().requires_grad_())
    same(y.detach(), other(x))


def fresh(module: QuantLinear) -> QuantLinear:
    """Make a layer of the same tensors, as they are now."""
    steps = (module.input_activation_scale, module.output_activation_scale)
    return QuantLinear.from_packed(
        module.weight,
        module.format,
        scale=module.weight_scale,
        steps=None if None in steps else steps,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("repacked", [False, True])
@pytest.mark.parametrize(
    ("how", "changed"),
    [
        (how, changed)
        for how in ("in place", "data", "replaced", "lent")
        for changed in (
            *("weight", "weight_scale"),
            *("input_activation_scale", "output_activation_scale"),
        )
        if (how, changed) != ("data", "weight")  # which refuses it
    ],
)
def test_a_tensor_that_changes_is_seen(how: str, changed: str, repacked: bool) -> None:
    module, x = static(), torch.randn(2, K)
    if repacked:
        module.repack()
    before, held = module(x), getattr(module, changed)
    value = static().weight.detach() if changed == "weight" else 2 * held.detach()
    got = None
    if how == "in place":
        with torch.no_grad():
            held.copy_(value)
    elif how == "data":
        held.data = value
    elif how == "replaced":
        module._parameters[changed] = nn.Parameter(value, requires_grad=False)
    else:
        with torch.no_grad():
            got = torch.func.functional_call(module, {changed: value}, (x,))
            same(module(x), before)
        setattr(module, changed, nn.Parameter(value, requires_grad=False))
    want = fresh(module)(x)
    assert not torch.equal(want, before)
    same(module(x) if got is None else got, want)
    same(module(x.clone().requires_grad_()).detach(), want)


def test_floats_are_not_loaded_as_bytes() -> None:
    module = layer("w8", bias=False)
    state = module.state_dict()
    state["weight"] = torch.randn(module.weight.shape)
    with pytest.raises(RuntimeError, match="weight: expected packed bytes, got"):
        module.load_state_dict(state)
    assert module.weight.dtype == torch.uint8


def test_a_state_dict_of_another_format_is_refused(tmp_path: Path) -> None:
    """Q4_0 and W4G32 have as many bytes a row, and so have F16 and BF16."""
    tables = [QuantEmbedding(N, K, fmt) for fmt in ("f16", "bf16")]
    mixtures = [
        QuantExperts(2, 32, 32, formats, nn.functional.gelu)
        for formats in (("q4_0", "w4g32"), ("w4g32", "q4_0"))
    ]
    for of, into in ([layer("q4_0"), layer("w4g32")], tables, mixtures):
        torch.save(nn.ModuleList([of]).state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        before = {name: t.clone() for name, t in into.state_dict().items()}
        words = f"0: expected {into._formats()}, found {of._formats()}: load it into"
        for assign in (False, True):
            with pytest.raises(RuntimeError, match=words):
                nn.ModuleList([into]).load_state_dict(state, assign=assign)
        assert all(
            torch.equal(t, before[name]) for name, t in into.state_dict().items()
        )
        nn.ModuleList([of]).load_state_dict(state)
        # Files from before formats were noted, and of safetensors, say nothing.
        nn.ModuleList([into]).load_state_dict(dict(state))


def test_other_devices_are_refused_before_anything_moves() -> None:
    for module in (layer(), QuantEmbedding(N, K, "q4_0")):
        with FakeTensorMode() as mode:

            def to_gpu(tensor: Tensor, mode: Any = mode) -> Tensor:
                with mode:
                    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

            name = type(module).__name__
        with pytest.raises(ArgumentError, match=f"device: {name} computes on the CPU"):
            module._apply(to_gpu)
        assert all(p.is_cpu for p in module.parameters())


@pytest.mark.parametrize(
    "call",
    [
        lambda: QuantLinear(K, N, "w8", device="meta")(torch.ones(1, K)),
        lambda: QuantLinear(K, N, "w8", device="meta")(
            torch.ones(1, K).requires_grad_()
        ),
        lambda: QuantEmbedding(N, K, "w8", device="meta")(torch.tensor([1])),
        lambda: QuantEmbedding(N, K, "w8", device="meta").weight[1],
        lambda: experts().to("meta")(
            torch.ones(1, 32), torch.tensor([[0]]), torch.ones(1, 1)
        ),
        lambda: half_filled("bias")(torch.ones(1, K)),
        lambda: half_filled("bias")(torch.ones(1, K).requires_grad_()),
        lambda: half_filled("weight_scale")(torch.ones(1, K)),
        lambda: half_filled("weight_scale")(torch.ones(1, K).requires_grad_()),
        lambda: half_filled("weight_scale").dequantize(),
        lambda: rms_norm(torch.ones(1, K), torch.ones(K, device="meta")),
    ],
)
def test_a_skeleton_that_is_not_filled_says_so(call: Callable[[], Any]) -> None:
    with pytest.raises(ArgumentError, match=r"no memory yet: .*assign=True") as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_skeleton_computes_whatever_the_default_type(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        module = QuantLinear(K, N, "w8", bias=True)
    finally:
        torch.set_default_dtype(torch.float32)
    wanted = layer("w8")
    module.load_state_dict(wanted.state_dict())
    x = torch.randn(2, K)
    torch.testing.assert_close(module(x), wanted(x), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: QuantLinear(33, 4, "q4_0"),
            ShapeError,
            "in_features: .*multiple of 32",
        ),
        (
            lambda: QuantLinear(32, 4, "q4_0", static=True),
            ArgumentError,
            "static: q4_0",
        ),
        (lambda: QuantLinear(32, 4, "q4"), ArgumentError, "format: expected one of"),
        (
            lambda: QuantLinear(32, 4, "q4_0", activations="int8"),
            ArgumentError,
            "activations: expected one of auto, f32",
        ),
        (
            lambda: QuantLinear.from_linear(3, "q4_0"),  # type: ignore[arg-type]
            DTypeError,
            "linear: expected a torch.nn.Linear, got int",
        ),
        (
            lambda: QuantLinear.from_packed([[0]], "q4_0"),  # type: ignore[arg-type]
            DTypeError,
            "weight: expected a tensor, got list",
        ),
        (
            lambda: QuantEmbedding.from_packed([[0]], "q4_0"),  # type: ignore[arg-type]
            DTypeError,
            "table: expected a tensor, got list",
        ),
        (
            lambda: QuantLinear.from_packed(torch.zeros(4, 18), "q4_0"),
            ShapeError,
            "w: expected a uint8 matrix, got torch.float32",
        ),
        (
            lambda: QuantLinear.from_packed(layer().weight, "q4_0", bias=torch.ones(2)),
            ShapeError,
            r"bias: expected shape \(19,\), got \(2,\)",
        ),
        (
            lambda: QuantLinear.from_packed(bytes_of("w8"), "w8"),
            DTypeError,
            "scale: expected float32, one a row of w8, got None",
        ),
        (
            lambda: QuantEmbedding.from_packed(bytes_of("w8"), "w8"),
            DTypeError,
            "scale: expected float32, one a row of w8, got None",
        ),
        (
            lambda: QuantEmbedding.from_packed(
                bytes_of("w8"), "w8", scale=torch.ones(3, 1)
            ),
            ShapeError,
            r"scale: expected shape \(4, groups\), got \(3, 1\)",
        ),
        (
            lambda: QuantEmbedding.from_packed(
                bytes_of("q4_0"), "q4_0", scale=torch.ones(4)
            ),
            ArgumentError,
            "scale: q4_0 has its scales in the blocks",
        ),
        (
            lambda: QuantLinear.from_packed(
                bytes_of("w8"),
                "w8",
                scale=torch.ones(4),
                bias=torch.ones(4),
                steps=(torch.tensor(0.1), torch.tensor(0.1)),
            ),
            ArgumentError,
            "bias: expected none with a step of the output",
        ),
        (
            lambda: product_of_ones(bias=torch.ones(4), y_step=torch.tensor(0.1)),
            ArgumentError,
            "bias: expected none with a step of the output",
        ),
        (
            lambda: product_of_ones(x_step=torch.ones(2)),
            ShapeError,
            r"x_step: expected one element, got shape \(2,\)",
        ),
        (
            lambda: QuantEmbedding.from_packed(
                bytes_of("w8"), "w8", scale=torch.ones(4, 2)
            )(torch.tensor([0, 4])),
            ArgumentError,
            "ids: expected 0 to 3",
        ),
        *(
            (
                lambda index=index, weights=weights: experts()(
                    torch.ones(3, 32), torch.tensor(index), torch.ones(weights)
                ),
                error,
                message,
            )
            for index, weights, error, message in (
                ([[0], [1]], (2, 1), ShapeError, "top_k_index: expected 3 rows"),
                (
                    [[0], [1], [1]],
                    (3, 2),
                    ShapeError,
                    r"top_k_weights: expected .*3, 1",
                ),
                (
                    [[0], [1], [-1]],
                    (3, 1),
                    ArgumentError,
                    "top_k_index: .* 0 to 1, got -1",
                ),
                (
                    [[0], [1], [2]],
                    (3, 1),
                    ArgumentError,
                    "top_k_index: .* 0 to 1, got 2",
                ),
            )
        ),
        (lambda: layer()(torch.randn(2, K).double()), DTypeError, "call .float"),
        (
            lambda: layer()(torch.randn(2, 5)),
            ShapeError,
            r"expected shape \(..., 256\)",
        ),
        (lambda: layer()(torch.ones(2, K).to_sparse()), ArgumentError, "to_dense"),
        (lambda: QuantEmbedding(4, 33, "q4_0"), ShapeError, "embedding_dim: .*of 32"),
        (
            lambda: QuantEmbedding(4, 32, "q4_0")(torch.tensor(4)),
            ArgumentError,
            "ids: position 0: found 4",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- embeddings


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_embeddings_are_those_of_transformers(bits: int, groups: int) -> None:
    theirs = QuantizedEmbedding(N, K, torch.float32, embed_scale=K**0.5, num_bits=bits)
    kind = theirs.embedding_quantized.dtype
    theirs.embedding_quantized.data = torch.randint(0, 127, (N, K * bits // 8)).to(kind)
    theirs.embedding_scale.data = torch.rand(N, groups)
    ours = QuantEmbedding.from_packed(
        theirs.embedding_quantized,
        f"w{bits}",
        scale=theirs.embedding_scale,
        embed_scale=K**0.5,
    )
    ids = torch.tensor([[0, 18, 0], [5, 6, 7]])
    same(ours(ids), theirs(ids).detach())
    whole = theirs.weight.detach()
    assert ours.weight.shape == whole.shape
    assert (ours.weight.dtype, ours.weight.device) == (whole.dtype, whole.device)
    for index in (3, -1, slice(2, 9, 3), ids, (ids, slice(0, 5)), (4, ...)):
        same(ours.weight[index], whole[index])
    mask = torch.arange(N) > 15
    same(ours.weight[mask], whole[mask])
    ours.output_dtype = torch.bfloat16
    assert ours(ids).dtype == torch.bfloat16
    with pytest.raises(IndexError):
        ours.weight[N]


def test_the_weight_of_an_embedding_is_indexed_as_a_tensor_is() -> None:
    table = QuantEmbedding.from_packed(bytes_of("q4_0"), "q4_0")
    dense = table(torch.arange(4))
    for index in (
        (slice(0, 0),),
        (slice(3, 3), 1),
        (slice(None, None, 2), slice(1, 3)),
        (-1,),
    ):
        same(table.weight[index], dense[index])


def test_the_default_device_has_no_say() -> None:
    table = QuantEmbedding.from_packed(bytes_of("q4_0"), "q4_0")
    picked, at = torch.tensor([True, False, True, True]), torch.zeros(2, 3).long()
    wanted = table.weight[picked]
    fused = FusedRotary({"full": Turns(8, 2, 10.0, 1.0)})
    angles = fused(torch.ones(1), at, "full")
    with torch.device("meta"):
        same(table.weight[picked], wanted)
        for got, want in zip(fused(torch.ones(1), at, "full"), angles, strict=True):
            same(got, want)
    # What comes out of a place without memory has none, and is no memory as it was.
    assert table(torch.tensor([1], device="meta")).is_meta


def test_an_embeddings_state_dict_survives(tmp_path: Path) -> None:
    table, scale = quantize(torch.randn(N, K), "w4")
    ours = QuantEmbedding.from_packed(table, "w4", scale=scale.reshape(-1, 1))
    save_file(ours.state_dict(), tmp_path / "table.safetensors")
    other = QuantEmbedding(N, K, "w4", device="meta")
    other.load_state_dict(load_file(tmp_path / "table.safetensors"), assign=True)
    same(other(torch.arange(N)), ours(torch.arange(N)))


# ---- adapters


def packed_linears(model: nn.Module, fmt: str) -> list[QuantLinear]:
    """Replace every linear layer of whole blocks, and return what took their places."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module.in_features % 32 == 0:
            model.set_submodule(name, QuantLinear.from_linear(module, fmt))
    return [m for m in model.modules() if isinstance(m, QuantLinear)]


class Mlp(nn.Module):
    """Two layers, and the loss of a guess."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.down(self.up(x).tanh()) - 1).square().mean()


def step(model: nn.Module, loss: Any) -> tuple[float, float]:
    """Take one step of gradient descent; the loss before and after."""
    trained = [p for p in model.parameters() if p.requires_grad]
    before = loss()
    before.backward()
    assert any(p.grad is not None and p.grad.any() for p in trained)
    torch.optim.SGD(trained, lr=0.01).step()
    return before.item(), loss().item()


@pytest.mark.parametrize("fmt", ["q4_0", "w8"])
def test_lora_on_a_packed_base(fmt: str) -> None:
    base = Mlp()
    layers = packed_linears(base, fmt)
    assert len(layers) == 2
    bytes_before = [module.weight.clone() for module in layers]
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["up", "down"]))
    x = torch.randn(16, 64)
    before, after = step(model, lambda: model(x))
    assert after < before
    # It adds a delta to the weight: of other shape, or of floats to bytes. Both fail.
    with pytest.raises(RuntimeError):
        model.merge_adapter()
    with pytest.raises((ArgumentError, RuntimeError)) as caught:
        model.merge_adapter(safe_merge=True)  # casts the delta to bytes
    if fmt == "w8":  # where a weight is a byte, nothing but our refusal stops it
        assert "packed bytes take no merged adapter" in str(caught.value)
    for module, want in zip(layers, bytes_before, strict=True):
        same(module.weight, want)
    assert model(x).item() == after
    assert sum(1 for m in model.unload().modules() if type(m) is QuantLinear) == 2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_lora_on_a_packed_gemma4() -> None:
    base = tiny.build("e2b", wide=True)
    layers = packed_linears(base, "q4_0")
    assert len(layers) > 50
    bytes_before = [module.weight.clone() for module in layers]
    wanted = peft.LoraConfig(
        target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, wanted)
    ids = torch.tensor([tiny.prompt(12)])
    before, after = step(model, lambda: model(input_ids=ids, labels=ids).loss)
    assert after < before
    for module, want in zip(layers, bytes_before, strict=True):
        same(module.weight, want)


# ---- tracers and transforms, which do not see a kernel that is called directly


def traced(layer: Any, x: Tensor) -> Any:
    return torch.jit.trace(layer, torch.ones_like(x))(x)


def by_rows(layer: Any, x: Tensor) -> Any:
    return torch.func.vmap(layer)(x)


def through_fx(layer: Any, x: Tensor) -> Any:
    return make_fx(layer)(torch.ones_like(x))(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_types_alone(dtype: torch.dtype) -> None:
    module, x = layer(), torch.randn(3, K)
    want = module(x)
    with torch.autocast("cpu", dtype=dtype):
        same(module(x), want)
        assert module(x.to(dtype)).dtype == dtype


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seen", [traced, by_rows, through_fx])
def test_what_looks_on_sees_the_product(seen: Any) -> None:
    layer = QuantLinear.from_linear(nn.Linear(64, 32), "q4_0").requires_grad_(False)
    x = torch.randn(3, 64)
    same(seen(layer, x), layer(x))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_are_not_packed() -> None:
    base = tiny.build("e2b", wide=True)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"]))
    ids = torch.tensor([tiny.prompt(12)])
    report = halfbyte.accelerate(model, quantize="q8_0")
    assert report.swapped
    adapters = {m for n, m in model.named_modules() if ".lora_" in n}
    assert not any(isinstance(m, QuantLinear) for m in adapters)
    assert model(input_ids=ids).logits.isfinite().all()


def test_what_torch_makes_by_default_is_not_ours() -> None:
    table = quantize(torch.randn(8, 64), "w4")
    scale = table[1].reshape(-1, 1).expand(-1, 2).contiguous()
    layer = QuantEmbedding.from_packed(table[0], "w4", scale=scale)
    want = layer(torch.arange(8))
    torch.set_default_dtype(torch.bfloat16)
    try:
        same(layer(torch.arange(8)), want)
    finally:
        torch.set_default_dtype(torch.float32)
    assert layer.weight.size() == (8, 64)
    assert layer.weight.size(1) == 64


# ---- the benchmark


def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "torch_linear.py"
    line = [sys.executable, script, "--layers", "1", "--rounds", "1", "--threads", "1"]
    done = subprocess.run(line, check=True, capture_output=True, timeout=300, text=True)
    assert "QuantLinear over the kernel" in done.stdout
    for name in ("q4_0", "w4", "w2", "w4 eager", "w2 eager", "bf16"):
        assert f"  {name}\n" in done.stdout
