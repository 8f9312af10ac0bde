# tests/python/test_convert_quantizers.py
# SPDX-License-Identifier: Apache-2.0
"""Weights on no lattice, rounded by the quantizer that was asked for."""

from __future__ import annotations

from pathlib import Path

import halfbyte
import numpy as np
import pytest
import tiny
import torch
from halfbyte import conversion
from halfbyte.errors import ArgumentError, FormatError
from numpy.typing import NDArray
from test_convert_safetensors import on_lattice
from test_imatrix import squares, write_gguf
from test_lattice import bf16

F32 = NDArray[np.float32]
UP, DOWN = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"
EXPERTS = "blk.0.ffn_down_exps.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = tiny.rounded(tiny.build("26b", wide=True))
    return tiny.save_hf(model, tmp_path / "bf16", dtype=torch.bfloat16)


def floats(source: Path) -> dict[str, F32]:
    """The matrices by their names in GGUF."""
    path = source.parent / "bf16.gguf"
    halfbyte.convert(source, path, format="bf16")
    file = halfbyte.open_gguf(path)
    return {t.name: file.weight(t.name).dequantize() for t in file.tensors}


def test_q8_0_holds_trained_levels(tmp_path: Path) -> None:
    model = on_lattice(tiny.build("e4b", wide=True))
    source = tiny.save_hf(model, tmp_path / "bf16", dtype=torch.bfloat16)
    target, matrices = tmp_path / "m.gguf", floats(source)
    halfbyte.convert(source, target, format="q8_0")
    file, apart, of = halfbyte.open_gguf(target), 0, 0
    for tensor in file.tensors:
        if tensor.type == "Q8_0":
            x = matrices[tensor.name]
            # A step in float16 is off by 2^-12 of itself: now and then a weight becomes
            # its neighbour. The usual step of 8 bits moves most of them.
            apart += np.count_nonzero(bf16(file.weight(tensor.name).dequantize()) != x)
            of += x.size
    assert apart < 0.01 * of
    assert of > 100_000


def test_squared_error(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    report = halfbyte.convert(source, target, quantizer="mse")
    assert report.quantizer == "mse"
    file, matrices, searched = halfbyte.open_gguf(target), floats(source), 0
    for tensor in file.tensors:
        if tensor.type in ("Q4_0", "Q6_K"):  # of which the second has no search
            how = "mse" if tensor.type == "Q4_0" else "rtn"
            want = halfbyte.quantize(
                matrices[tensor.name], tensor.format, quantizer=how
            )
            np.testing.assert_array_equal(file.tensor_bytes(tensor.name), want.data)
            searched += tensor.type == "Q4_0"
    assert searched > 10


def imatrix(tmp_path: Path, sizes: dict[str, tuple[int, int]]) -> tuple[Path, dict]:
    """A file for some tensors, and the factors in it."""
    tensors: dict[str, F32] = {}
    factors = {}
    for name, (matrices, columns) in sizes.items():
        factors[name] = squares(matrices, columns)
        tensors[f"{name}.in_sum2"] = factors[name]
        tensors[f"{name}.counts"] = np.ones((matrices, 1), np.float32)
    return write_gguf(tmp_path / "imatrix.gguf", tensors), factors


def test_importance(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces that end in the middle of an expert.
    monkeypatch.setattr(conversion.stream, "PIECE_BYTES", 9000)
    matrices = floats(source)
    tensors = {t.name: t for t in halfbyte.open_gguf(tmp_path / "bf16.gguf").tensors}
    experts, rows, columns = tensors[EXPERTS].shape
    path, factors = imatrix(
        tmp_path,
        {EXPERTS: (experts, columns), UP: (1, matrices[UP].shape[1])},
    )
    target = tmp_path / "m.gguf"
    halfbyte.convert(source, target, quantizer="imatrix", imatrix=path)
    file = halfbyte.open_gguf(target)

    def packed(x: F32, **how: object) -> NDArray[np.uint8]:
        return halfbyte.quantize(x, "q4_0", **how).data

    weighted = {"quantizer": "imatrix"}
    want = packed(matrices[UP], importance=factors[UP][0], **weighted)
    np.testing.assert_array_equal(file.tensor_bytes(UP), want)
    want = packed(matrices[DOWN], quantizer="mse")
    np.testing.assert_array_equal(file.tensor_bytes(DOWN), want)
    each = matrices[EXPERTS].reshape(experts, rows, columns)
    want = np.concatenate(
        [
            packed(x, importance=f, **weighted)
            for x, f in zip(each, factors[EXPERTS], strict=True)
        ]
    )
    np.testing.assert_array_equal(file.tensor_bytes(EXPERTS), want)


def test_what_does_not_fit(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    path, _ = imatrix(tmp_path, {UP: (1, 32)})
    for how, message in (
        ({"quantizer": "best"}, "expected one of rtn, mse, imatrix, got 'best'"),
        ({"quantizer": "imatrix"}, "a file is wanted by the quantizer 'imatrix'"),
        (
            {"quantizer": "mse", "imatrix": path},
            "a file is not for the quantizer 'mse'",
        ),
        (
            {"quantizer": "imatrix", "imatrix": path},
            rf"imatrix.gguf: '{UP}': expected \d+ numbers .* found 32: it is of another",
        ),
    ):
        with pytest.raises(ArgumentError, match=message):
            halfbyte.convert(source, target, **how)
    with pytest.raises(FormatError, match="imatrix: "):
        halfbyte.convert(
            source, target, quantizer="imatrix", imatrix=source / "config.json"
        )
    assert not target.exists()
