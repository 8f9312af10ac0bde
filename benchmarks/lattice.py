# benchmarks/lattice.py
# What it is worth to find the lattice of trained weights again.
# SPDX-License-Identifier: Apache-2.0
"""Compare Q4_0 by the lattice and by the gguf package's quantizer with the checkpoint.

    python benchmarks/lattice.py DIR [--text FILE] [--tokens 128] [--json OUT]
    python benchmarks/lattice.py DIR --work FOLDER   room for the layers in float32

DIR is a bfloat16 checkpoint that was trained for Q4_0, or `synthetic.py e2b-bf16`. In
both forms the matrices of the layers are packed, and embeddings are left alone.
Activations stay in float32: what is compared are the weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import halfbyte
import numpy as np
from gguf.quants import dequantize, quantize
from halfbyte.cli import terminal
from halfbyte.files import File, TensorInfo
from halfbyte.verification.agreement import Agreement, compare
from numpy.typing import NDArray
from roof import model_path

__all__ = ["measure", "write_naive"]

_GROUP = 32


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=model_path)
    parser.add_argument("--text", type=Path, help="UTF-8; without it random tokens")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--work", type=Path, help="a folder for temporary files")
    parser.add_argument("--json", type=Path, help="keep the numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        found = measure(options.directory, Path(work), options.text, options.tokens)
    rows = [
        (
            name,
            f"{apart.kl_mean:.3g}",
            f"{apart.kl_p99:.3g}",
            f"{apart.top1:.2%}",
            f"{apart.perplexity / apart.reference_perplexity - 1:+.3%}",
        )
        for name, apart in found.items()
    ]
    header = ("Q4_0 by", "KL", "99 % below", "same top-1", "perplexity")
    terminal.table(header, rows, "lrrrr")
    ratio = found["gguf"].kl_mean / found["lattice"].kl_mean
    terminal.line(f"the lattice is {ratio:,.0f} times nearer")
    if options.json is not None:
        kept = {name: asdict(apart) for name, apart in found.items()}
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def measure(
    source: Path, work: Path, text: Path | None = None, tokens: int = 128
) -> dict[str, Agreement]:
    """Measure how far both forms are from a checkpoint.

    Parameters
    ----------
    source : Path
        The checkpoint.
    work : Path
        An empty folder, for the layers in float32.
    text : Path, optional
        What to read; random tokens by default.
    tokens : int
        How many of it.

    Returns
    -------
    dict
        By ``"lattice"`` and ``"gguf"``.
    """
    reference = halfbyte.load(source, activations="f32")
    if text is None:
        vocab = reference.config.vocab_size
        ids = np.random.default_rng(0).integers(vocab, size=tokens).tolist()
    else:
        ids = reference.tokenize(text.read_text(encoding="utf-8"))[:tokens]
    exact = halfbyte.load(source, quantize="q4_0", activations="f32")
    found = {"lattice": compare(exact, reference, ids, greedy=0)}
    write_naive(source, work)
    naive = halfbyte.load(work, activations="f32")
    return found | {"gguf": compare(naive, reference, ids, greedy=0)}


def write_naive(source: Path, target: Path) -> None:
    """Write a checkpoint whose layers went through the gguf package's Q4_0.

    Parameters
    ----------
    source : Path
        A directory in bfloat16.
    target : Path
        A folder. Matrices of layers become float32, which holds what they are packed
        to; all else stays as it is.
    """
    file = halfbyte.open_safetensors(source)
    header: dict[str, Any] = {}
    end = 0
    for tensor in file.tensors:
        start, end = end, end + tensor.bytes * (2 if _is_packed(tensor) else 1)
        header[tensor.name] = {
            "dtype": "F32" if _is_packed(tensor) else tensor.type,
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header).encode()
    with (target / "model.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in file.tensors:
            for part in _contents(file, tensor):
                out.write(part.data)
    for name in ("config.json", "tokenizer.json"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def _is_packed(tensor: TensorInfo) -> bool:
    is_matrix = len(tensor.shape) >= 2 and tensor.shape[-1] % _GROUP == 0
    return is_matrix and ".layers." in f".{tensor.name}" and "router" not in tensor.name


def _contents(file: File, tensor: TensorInfo) -> Iterator[NDArray[Any]]:
    """Some rows after the other: the package holds several copies of what it packs."""
    if not _is_packed(tensor):
        yield file.tensor_bytes(tensor.name)
        return
    weight, kind = file.weight(tensor.name), gguf.GGMLQuantizationType.Q4_0
    for start in range(0, weight.shape[0], 512):
        rows = np.arange(start, min(start + 512, weight.shape[0]))
        packed = quantize(weight.dequantize(rows), kind)
        yield dequantize(packed, kind).astype(np.float32)


if __name__ == "__main__":
    main()
