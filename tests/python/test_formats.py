# tests/python/test_formats.py
# SPDX-License-Identifier: Apache-2.0
"""Decoders and quantizers against other implementations, on every target.

A new format needs `tests/golden/<format>.npz` and nothing here.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from pathlib import Path

import gguf
import halfbyte
import numpy as np
import pytest
from halfbyte import _picture
from halfbyte.formats import format_info
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from samples import (
    FIELDS,
    GOLDEN_CRC,
    GOLDEN_PACKED,
    GOLDEN_Q6_K_CRC,
    Bytes,
    F32Array,
    assert_same_bits,
    extreme_rows,
    gguf_dequantize,
    golden_block,
    golden_row,
    sizes,
)

GOLDEN = Path(__file__).parent.parent / "golden"
KNOWN = [
    f for f in halfbyte.formats() if f.upper() in gguf.GGMLQuantizationType.__members__
]
every_target = pytest.mark.usefixtures("target")


def golden(fmt: str, name: str) -> Bytes | F32Array:
    with np.load(GOLDEN / f"{fmt}.npz") as arrays:
        return np.array(arrays[name])


def decode(data: Bytes, fmt: str, k: int) -> F32Array:
    return halfbyte.Weight(data, fmt, (len(data), k)).dequantize()


@every_target
@pytest.mark.parametrize("fmt", halfbyte.formats())
@pytest.mark.parametrize("rows", [1, 2, 3, 24])
def test_golden_blocks(fmt: str, rows: int) -> None:
    blocks, weights = golden(fmt, "blocks")[:rows], golden(fmt, "weights")[:rows]
    assert_same_bits(decode(blocks, fmt, weights.shape[1]), weights)
    assert_same_bits(
        decode(blocks.reshape(1, -1), fmt, weights.size), weights.reshape(1, -1)
    )


@every_target
@pytest.mark.parametrize("fmt", KNOWN)
def test_decoders_equal_gguf(fmt: str) -> None:
    block_len, block_bytes = sizes(fmt)
    info = format_info(fmt)
    assert (info.block_len, info.block_bytes) == (block_len, block_bytes)
    assert info.type_id == gguf.GGMLQuantizationType[fmt.upper()]
    blocks = 16 if block_len > 1 else 4096
    data = extreme_rows(fmt, 40, blocks, seed=1)
    assert_same_bits(decode(data, fmt, blocks * block_len), gguf_dequantize(data, fmt))


@every_target
@pytest.mark.parametrize("fmt", [f for f in KNOWN if f in FIELDS])
def test_every_step_decodes(fmt: str) -> None:
    block_len, block_bytes = sizes(fmt)
    data = np.random.default_rng(3).integers(0, 256, (65536, block_bytes), np.uint8)
    bits = np.arange(65536, dtype="<u2")[:, None].view(np.uint8)
    steps, minima = FIELDS[fmt]
    for at in steps:
        data[:, at : at + 2] = bits
    for at in minima:
        data[:, at : at + 2] = bits[::-1]
    # Every bit pattern once; K formats have eight times the weights and differ in none
    # of the code that reads the step, so a quarter of their patterns will do.
    data = data[:: 1 if block_len == 32 else 5]
    assert_same_bits(decode(data, fmt, block_len), gguf_dequantize(data, fmt))


@every_target
@pytest.mark.parametrize("fmt", ["f16", "bf16"])
def test_every_16_bit_float_decodes(fmt: str) -> None:
    bits = np.arange(65536, dtype="<u2").view(np.uint8)[None, :]
    assert_same_bits(decode(bits, fmt, 65536), gguf_dequantize(bits, fmt))


@every_target
@pytest.mark.parametrize("fmt", GOLDEN_CRC)
def test_golden_checksums(fmt: str) -> None:
    weights = decode(golden_block(fmt)[None, :], fmt, sizes(fmt)[0])
    assert zlib.crc32(weights.astype("<f4").tobytes()) == GOLDEN_CRC[fmt]


@every_target
@pytest.mark.parametrize("fmt", KNOWN)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_blocks_may_lie_anywhere(fmt: str, at: int) -> None:
    data = extreme_rows(fmt, 3, 7, seed=4)
    memory = np.zeros(data.size + at, np.uint8)
    memory[at:] = data.reshape(-1)
    w = halfbyte.Weight(memory[at:], fmt, (3, 7 * sizes(fmt)[0]))
    assert w.data.ctypes.data == memory.ctypes.data + at  # not copied
    assert_same_bits(w.dequantize(), gguf_dequantize(data, fmt))


@settings(max_examples=200, deadline=None)
@given(
    raw=st.binary(max_size=2048),
    fmt=st.sampled_from(halfbyte.formats()),
    shape=st.tuples(st.integers(-1, 9), st.integers(-1, 1024)),
)
def test_any_bytes_are_weights_or_refused(
    raw: bytes, fmt: str, shape: tuple[int, int]
) -> None:
    n, k = shape
    info = format_info(fmt)
    if n >= 0 and k >= 0:  # else almost nothing would fit
        k -= k % info.block_len
        raw = (raw * 3)[: n * k // info.block_len * info.block_bytes]
    try:
        w = halfbyte.Weight(np.frombuffer(raw, np.uint8), fmt, (n, k))
    except halfbyte.ShapeError:
        assert min(n, k) < 0 or len(raw) * info.block_len != n * k * info.block_bytes
        return
    assert w.dequantize().shape == (n, k)


# ---- the other way


# Not q6_k: which of two equally good steps its search finds depends on the compiler.
@every_target
@pytest.mark.parametrize("fmt", ["f16", "bf16", "q4_0", "q8_0"])
def test_quantizers_equal_llama_cpp(fmt: str) -> None:
    packed = halfbyte.quantize(golden(fmt, "rows"), fmt)
    np.testing.assert_array_equal(packed.data, golden(fmt, "packed").reshape(-1))


@every_target
def test_golden_packed_blocks() -> None:
    for fmt, packed in GOLDEN_PACKED.items():
        assert halfbyte.quantize(golden_row(32), fmt).data.tobytes().hex() == packed
    q6_k = halfbyte.quantize(golden_row(256), "q6_k")
    assert zlib.crc32(q6_k.data.tobytes()) == GOLDEN_Q6_K_CRC


def test_f32_keeps_every_bit() -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, (3, 40), np.uint32)
    packed = halfbyte.quantize(bits.view(np.float32), "f32")
    assert packed.data.tobytes() == bits.tobytes()


@pytest.mark.parametrize("fmt", [f for f in KNOWN if f in FIELDS])
def test_a_row_is_whole_blocks(fmt: str) -> None:
    k = sizes(fmt)[0] + 1
    with pytest.raises(halfbyte.ShapeError, match=rf"^shape: .* multiple of {k - 1} "):
        halfbyte.Weight(np.zeros(sizes(fmt)[1], np.uint8), fmt, (1, k))


def test_a_weight_is_read_only() -> None:
    w = halfbyte.quantize(golden_row(32), "q4_0")
    with pytest.raises(AttributeError):
        w.format = "q8_0"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        w.data[0] = 1


# ---- in a notebook


def picture(page: str) -> Bytes:
    """Grey levels of the image on a page, read by Pillow."""
    found = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as image:
        assert image.mode == "L"
        return np.array(image)


def test_a_weight_shows_itself() -> None:
    x = np.random.default_rng(0).standard_normal((512, 4096), np.float32)
    page = halfbyte.quantize(x, "q4_0")._repr_html_()
    rows = re.findall(r"<tr><th>([^<]+)</th><td>([^<]*)<", page)
    assert rows == [
        ("shape", "512 x 4096"),
        ("format", "q4_0"),
        ("bytes", "1,179,648"),
        ("bits per weight", "4.5"),
        ("mean |weight|", ""),
    ]
    assert picture(page).shape == (32, 64)
    assert len(page) < 4096


def test_the_picture_is_the_mean_magnitude() -> None:
    want = (np.arange(32 * 64) % 256).reshape(32, 64)
    # Tiles of 2 x 3 whose magnitudes are off by 0.25 and -0.25 and cancel in the mean.
    x = 1 + want.repeat(2, axis=0).repeat(3, axis=1).astype(np.float32)
    x[0::2] += 0.25
    x[1::2] -= 0.25
    x[:, 1::3] *= -1
    page = halfbyte.quantize(x, "f32")._repr_html_()
    np.testing.assert_array_equal(picture(page), want)
    assert "black 1, white 256" in page


def test_the_picture_of_a_table_reads_few_rows() -> None:
    asked: list[NDArray[np.intp]] = []

    def rows(ids: NDArray[np.intp]) -> F32Array:
        asked.append(ids)
        return np.repeat(ids[:, None], 2, axis=1).astype(np.float32)

    means = _picture.block_means((320_000, 2), rows)
    assert [len(ids) for ids in asked] == [32] * 32
    # Each band of 10000 rows is read at every 312.5th, from its first on.
    want = [10_000 * band + np.mean(np.arange(32) * 10_000 // 32) for band in range(32)]
    np.testing.assert_array_equal(means, np.repeat(want, 2).reshape(32, 2))


def test_a_picture_of_anything() -> None:
    x = np.array([[0, 1, np.inf, np.nan, -np.inf, 3]], np.float32)
    grey = picture(halfbyte.quantize(x, "f32")._repr_html_())
    assert grey.tolist() == [[0, 85, 255, 255, 255, 255]]
    for same in (np.zeros((3, 32)), np.full((1, 32), np.nan)):
        page = halfbyte.quantize(same.astype(np.float32), "f32")._repr_html_()
        assert len(np.unique(picture(page))) == 1
    empty = halfbyte.Weight(np.zeros(0, np.uint8), "q4_0", (0, 32))
    assert "<img" not in empty._repr_html_()
