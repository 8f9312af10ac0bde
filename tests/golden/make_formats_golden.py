# tests/golden/make_formats_golden.py
# SPDX-License-Identifier: Apache-2.0
"""Record what other implementations make of every weight format.

    PYTHONPATH=tests/python python tests/golden/make_formats_golden.py

writes ``<format>.npz`` beside this file: `blocks`, random bytes whose float16 fields run
through every extreme, and `weights`, what the `gguf` package decodes them to; levels of
w4 and w2 come from transformers' Gemma modules, those of w8 are NumPy's int8, and w4g32
is what compressed-tensors and torch make of the two tensors it joins. For the
formats that llama.cpp packs without a search, whose outcome depends on how it was
compiled, there are also `rows` and `packed`, the bytes that its library makes of them.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import halfbyte
import llama_cpp
import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from numpy.typing import NDArray
from samples import extreme_rows, gguf_dequantize, qtype, sizes, tricky_rows
from transformers.integrations import gemma_quant

HERE = Path(__file__).parent
NUM_BLOCKS = 15 + 9  # every extreme once, then random scales
PACKED = ("f16", "bf16", "q4_0", "q8_0")


def llama_quantize(rows: NDArray[np.float32], fmt: str) -> NDArray[np.uint8]:
    """Pack rows with the library that llama-cpp-python was built with."""
    path = Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"
    quantize = ctypes.CDLL(str(path)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    wide, pointer = ctypes.c_int64, ctypes.c_void_p
    quantize.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]
    n, k = rows.shape
    block_len, block_bytes = sizes(fmt)
    out = np.zeros((n, k // block_len * block_bytes), np.uint8)
    written = quantize(
        int(qtype(fmt)), rows.ctypes.data, out.ctypes.data, 0, n, k, None
    )
    assert written == out.size
    return out


def decoded(blocks: NDArray[np.uint8], fmt: str) -> NDArray[np.float32]:
    """Weights of blocks, or their levels where a row's scale lies elsewhere."""
    if fmt == "w8":
        return blocks.view(np.int8).astype(np.float32)
    if fmt == "w4g32":
        codes = torch.from_numpy(blocks[:, 2:].copy()).view(torch.int32)
        levels = unpack_from_int32(codes, 4, torch.Size((len(blocks), 32)))
        steps = torch.from_numpy(blocks[:, :2].copy()).view(torch.bfloat16)
        return (levels.float() * steps.float()).numpy()
    if fmt in ("w4", "w2"):
        unpack = {"w4": gemma_quant._unpack_int4, "w2": gemma_quant._unpack_int2}[fmt]
        levels = unpack(torch.from_numpy(blocks), sizes(fmt)[0])
        return levels.numpy().astype(np.float32)
    return gguf_dequantize(blocks, fmt)


def main() -> None:
    """Write one file a format."""
    for fmt in halfbyte.formats():
        blocks = extreme_rows(fmt, 1, NUM_BLOCKS * 15, seed=7).reshape(
            -1, sizes(fmt)[1]
        )
        # One of each extreme step, under changing minima.
        blocks = np.concatenate([blocks[: 15 * 15 : 16], blocks[15 * 15 :][:9]])
        golden: dict[str, NDArray[Any]] = {"blocks": blocks}
        golden["weights"] = decoded(blocks, fmt)
        if fmt in PACKED:
            golden["rows"] = tricky_rows(32)
            golden["packed"] = llama_quantize(golden["rows"], fmt)
        np.savez_compressed(HERE / f"{fmt}.npz", **golden)


if __name__ == "__main__":
    main()
