# benchmarks/torch_linear.py
# SPDX-License-Identifier: Apache-2.0
"""`halfbyte.torch.QuantLinear`: what a call costs, and decoding beside what torch has.

    python benchmarks/torch_linear.py [--threads 1,2] [--layers 8] [--rounds 5]

README.md in this folder says what the columns mean.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import halfbyte
import torch
from halfbyte.cli import terminal
from halfbyte.formats import format_info
from halfbyte.torch import QuantLinear
from roof import ReadLoop, environment, headline
from synth.shapes import HEAD, SIZES
from torch import Tensor, nn
from transformers.integrations.gemma_quant import QuantizedLinear

Layers = Sequence[nn.Module]

E2B = SIZES["e2b"]
# N and K of a sliding layer's matrices: q, o, gate, up, down.
MATRICES = [
    (E2B.heads * HEAD, E2B.hidden),
    (E2B.hidden, E2B.heads * HEAD),
    (E2B.ffn, E2B.hidden),
    (E2B.ffn, E2B.hidden),
    (E2B.hidden, E2B.ffn),
]
STEPS = (torch.tensor(0.03), torch.tensor(0.05))


# ---- what a call costs


class _Empty(nn.Module):
    """What torch itself takes to call a module."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def microseconds(
    call: Callable[[], Any], calls: int = 2000, repeats: int = 25
) -> float:
    """Return the quickest of several runs: what was in its way is not part of it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, time.perf_counter() - start)
    return best / calls * 1e6


def overhead() -> None:
    """Print what Python and torch add to the smallest product."""
    torch.set_num_threads(1)
    layer = QuantLinear.from_linear(nn.Linear(32, 16, bias=False), "q4_0").repack()
    x, y, empty = torch.randn(1, 1, 32), torch.empty(1, 1, 16), _Empty()
    w = halfbyte.quantize(layer.dequantize().numpy(), "q4_0").repack()
    row = x.view(1, 32).numpy()
    bare, _ = layer._packed()
    at = x.data_ptr(), "f32", 1, 32, 0, y.data_ptr(), "auto", 1
    with torch.inference_mode(), halfbyte.threads(1):
        times = {
            "the kernel by itself, _core.Weight.linear_at": lambda: bare.linear_at(*at),
            "an empty module": lambda: empty(x),
            "QuantLinear": lambda: layer(x),
            "halfbyte.linear": lambda: halfbyte.linear(row, w),
        }
        told = {name: microseconds(call) for name, call in times.items()}
    terminal.line("16 x 32 weights, 1 token, 1 thread; microseconds a call")
    for name, value in told.items():
        terminal.line(f"  {value:6.2f}  {name}")
    least = min(told.values())
    terminal.line(f"  {told['QuantLinear'] - least:6.2f}  QuantLinear over the kernel")
    terminal.line()


# ---- decoding


def packed(fmt: str, n: int, k: int) -> QuantLinear:
    """Return a layer of random codes under scales that keep results near 1."""
    info = format_info(fmt)
    w = torch.randint(0, 256, (n, k // info.block_len * info.block_bytes)).byte()
    size = 0.3 / k**0.5
    if info.row_scaled:
        scale = torch.full((n, 1), size)
        return QuantLinear.from_packed(w, fmt, scale=scale, steps=STEPS).repack()
    d = torch.tensor([size]).half().view(torch.uint8)
    w.view(n, -1, info.block_bytes)[:, :, :2] = d  # q4_0: the step comes first
    return QuantLinear.from_packed(w, fmt).repack()


def eager(layer: QuantLinear, bits: int) -> QuantizedLinear:
    """Return transformers' layer over the same bytes."""
    theirs = QuantizedLinear(layer.in_features, layer.out_features, num_bits=bits)
    theirs.weight, theirs.weight_scale = layer.weight, layer.weight_scale
    theirs.input_activation_scale = layer.input_activation_scale
    theirs.output_activation_scale = layer.output_activation_scale
    return theirs


def dense(n: int, k: int) -> nn.Linear:
    """Return torch's layer in bfloat16."""
    layer = nn.Linear(k, n, bias=False, device="meta", dtype=torch.bfloat16)
    return layer.to_empty(device="cpu").requires_grad_(False)


def check(sides: dict[str, Layers]) -> None:
    """Compare answers: a wrong one is not timed."""
    for ours in sides["q4_0"][:5]:
        x = torch.randn(1, ours.in_features)
        want = x @ ours.dequantize().T
        # 8-bit codes of x: each off by at most half of max |x| / 127, at random.
        if (ours(x) - want).norm() > 0.02 * want.norm():
            raise SystemExit("not timed: q4_0 differs from its dequantized matrix")
    for fmt in ("w4", "w2"):
        for ours, theirs in zip(sides[fmt], sides[f"{fmt} eager"], strict=False):
            x = torch.randn(1, ours.in_features)
            codes_apart = (ours(x) - theirs(x)).abs() / STEPS[1]
            # Float sums differ in their last bits: a tie is rounded to either side.
            if codes_apart.max() > 1.5 or codes_apart.mean() > 1e-3:
                raise SystemExit(f"not timed: {fmt} differs from transformers' layer")


def run(side: Layers, inputs: dict[int, Tensor]) -> float:
    """Return the seconds of one token through every matrix."""
    time.sleep(0.05)  # until the other side's threads have stopped spinning
    start = time.perf_counter()
    for layer in side:
        layer(inputs[layer.in_features])
    return time.perf_counter() - start


def weight_bytes(side: Layers) -> int:
    """Bytes of weights that a token reads."""
    return sum(layer.weight.nbytes for layer in side)


def decode(sides: dict[str, Layers], threads: int, rounds: int) -> None:
    """Print times of a token, in turn, and their ratios."""
    torch.set_num_threads(threads)
    inputs = {k: torch.randn(1, k).bfloat16() for _, k in MATRICES}
    read = ReadLoop(threads, 1 << 28)
    where, bandwidth = environment(threads), []
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    share: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            bandwidth.append(read())
            run(side[:5], inputs)  # the threads awake, the code in the cache
            taken = run(side, inputs) / len(side)
            seconds[name].append(taken)
            rate = weight_bytes(side) / len(side) / taken / 1e9
            share[name].append(rate / bandwidth[-1])
    terminal.line(headline(where, bandwidth))
    terminal.line("  ms a layer  of bandwidth  x bf16  x eager")
    for name, times in seconds.items():
        line = f"  {statistics.median(times) * 5e3:10.3f}  "
        line += f"{statistics.median(share[name]):12.2f}  "
        for other in ("bf16", f"{name} eager"):
            pairs = zip(seconds.get(other, []), times, strict=False)
            ratios = [theirs / ours for theirs, ours in pairs]
            line += f"{statistics.median(ratios):6.1f}  " if ratios else " " * 8
        terminal.line(line + name)
    terminal.line()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--layers", type=int, default=8, help="copies of a layer")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    overhead()
    shapes = MATRICES * options.layers
    sides: dict[str, Layers] = {
        fmt: [packed(fmt, n, k) for n, k in shapes] for fmt in ("q4_0", "w4", "w2")
    }
    # One layer is enough of what unpacks the whole matrix for each token.
    for fmt, bits in (("w4", 4), ("w2", 2)):
        sides[f"{fmt} eager"] = [eager(layer, bits) for layer in sides[fmt][:5]]
    sides["bf16"] = [dense(n, k) for n, k in shapes]
    with torch.inference_mode():
        check(sides)
        for threads in map(int, options.threads.split(",")):
            decode(sides, threads, options.rounds)


if __name__ == "__main__":
    main()
