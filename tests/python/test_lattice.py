# tests/python/test_lattice.py
# SPDX-License-Identifier: Apache-2.0
"""Finding the lattice of trained weights again, and not finding one where there is none."""

from __future__ import annotations

import halfbyte
import ml_dtypes
import numpy as np
import pytest
from halfbyte import lattice, reference
from halfbyte.errors import ArgumentError, NumericalError, ShapeError
from halfbyte.lattice import Group
from numpy.typing import NDArray

F32 = NDArray[np.float32]
every_target = pytest.mark.usefixtures("target")


def bf16(x: NDArray[np.floating]) -> F32:
    """Round by another library than ours."""
    return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)


def trained(
    seed: int, n: int, k: int, *, sign: int = 1
) -> tuple[F32, NDArray[np.int64]]:
    """A matrix as training leaves it: steps near those of least error, in float32."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((n * k // 32, 32)) * rng.uniform(0.003, 0.1)
    steps = np.abs(groups).max(1) / 8 * rng.uniform(0.75, 1.2, len(groups))
    steps = steps.astype(np.float32)[:, np.newaxis]
    levels = sign * np.clip(np.rint(groups / steps), -8, 7) + 0.0  # no -0
    x = bf16(steps * levels.astype(np.float32))
    return x.reshape(n, k), levels.astype(np.int64)


def levels_of(w: halfbyte.Weight) -> NDArray[np.int64]:
    """Levels of each group, with the sign of the step."""
    blocks = w.data.reshape(-1, 18)
    low, high = blocks[:, 2:] & 15, blocks[:, 2:] >> 4
    steps = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    levels = np.concatenate([low, high], 1).astype(np.int64) - 8
    return levels * np.where(np.signbit(steps), -1, 1)


def without_factor(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Levels over what divides them all: half of them at twice the step is the same."""
    factor = np.gcd.reduce(levels, axis=1, keepdims=True)
    return levels // np.maximum(factor, 1)


@every_target
def test_the_specified_group() -> None:
    levels = (5 * np.arange(32)) % 16 - 8
    x = bf16(np.float32(0.0123) * levels.astype(np.float32))[np.newaxis]
    found = lattice.recover(x)
    assert found.groups.tolist() == [[Group.EXACT]]
    assert levels_of(found.weight).tolist() == [levels.tolist()]
    # The two float16 numbers that give all 32 weights.
    assert found.weight.data[:2].tobytes() in (b"\x4c\x22", b"\x4d\x22")


def test_bits_of_a_file_may_begin_anywhere() -> None:
    bits = bf16(trained(1, 8, 64)[0]).astype(ml_dtypes.bfloat16).view(np.uint16)
    odd = np.frombuffer(b"\0" + bits.tobytes(), np.uint16, offset=1)
    odd = odd.reshape(bits.shape)
    assert not odd.flags.aligned
    got, want = lattice.recover_bits(odd), lattice.recover_bits(bits)
    np.testing.assert_array_equal(got.weight.data, want.weight.data)


@every_target
@pytest.mark.parametrize("sign", [1, -1])
def test_trained_levels_come_back(sign: int) -> None:
    x, levels = trained(1, 64, 1024, sign=sign)
    found = lattice.recover(x)
    assert found.on_lattice == 1.0
    want = without_factor(levels)
    np.testing.assert_array_equal(without_factor(levels_of(found.weight)), want)
    exact = found.groups.reshape(-1) == Group.EXACT
    back = bf16(halfbyte.dequantize(found.weight)).reshape(-1, 32) + 0.0  # no -0
    same = back == x.reshape(-1, 32)
    np.testing.assert_array_equal(same.all(1), exact)
    # The step in float16 is off by half an ulp at most, 2**-11 of it, and a weight by
    # that much lies on the wrong side of a border for one in eight at worst.
    assert same.mean() > 0.99
    # ... by one ulp of bfloat16: never further.
    apart = back.view(np.uint32).astype(np.int64) - x.reshape(-1, 32).view(np.uint32)
    assert set(np.unique(np.abs(apart) >> 16)) <= {0, 1}


@every_target
def test_it_is_what_the_reference_finds() -> None:
    rng = np.random.default_rng(2)
    mixed = np.concatenate(
        [
            trained(3, 8, 256)[0],
            trained(4, 8, 256, sign=-1)[0],
            bf16(rng.standard_normal((8, 256)) * 0.02),
            bf16(
                rng.integers(-1, 2, (8, 256))
                * rng.uniform(0, 1, (8, 256)).max(1)[:, None]
            ),
            bf16(
                trained(5, 8, 256)[0] * 2.0**-18
            ),  # steps that are subnormal in float16
            bf16(trained(6, 8, 256)[0] * 2.0**-30),  # and that are 0 there
            bf16(trained(7, 8, 256)[0] * 2.0**24),  # and infinite
            np.where(rng.uniform(size=(8, 256)) < 0.05, trained(8, 8, 256)[0], 0),
            np.zeros((1, 256)),
        ]
    ).astype(np.float32)
    found = lattice.recover(mixed)
    weight, groups = reference.recover(mixed)
    np.testing.assert_array_equal(found.groups, groups)
    np.testing.assert_array_equal(found.weight.data, weight.data.reshape(-1))
    assert set(np.unique(groups)) == {1, 2, 3, 4}


@every_target
@pytest.mark.parametrize("scheme", ["none", "q8_0", "q6_k", "w8", "w4", "nudged"])
def test_other_weights_are_never_on_it(scheme: str) -> None:
    rng = np.random.default_rng(9)
    x = (rng.standard_normal((256, 2048)) * 0.02).astype(np.float32)
    if scheme == "nudged":  # trained, then trained on without the lattice
        x = trained(10, 256, 2048)[0] * (1 + 0.02 * rng.standard_normal(x.shape))
    elif scheme != "none":
        x = halfbyte.dequantize(halfbyte.quantize(x, scheme))
    kinds = np.unique(lattice.recover(bf16(x)).groups)
    if scheme == "w4":  # one step a row is one for 32 neighbours as well
        assert set(kinds) <= {Group.LEVELS, Group.EXACT}
    else:
        assert kinds.tolist() == [Group.OFF]


@every_target
@pytest.mark.parametrize("fmt", ["q4_0", "q8_0", "w4g32"])
def test_no_step_is_claimed_that_16_bits_do_not_hold(fmt: str) -> None:
    """From below bfloat16's numbers to near its largest; zeros come back with any step."""
    levels = (5 * np.arange(32)) % 16 - 8
    few = np.where(np.arange(32) < 2, levels, 0)
    none_is_zero = np.where(levels == 0, 1, levels)
    groups = np.concatenate([levels, few, none_is_zero])
    exponents = np.arange(-140, 120, 0.75)
    x = bf16(np.outer(2.0**exponents, groups))
    found = lattice.recover(x, fmt)
    back = bf16(found.weight.dequantize()) + 0.0  # no -0
    bits = [v.view(np.uint32).astype(np.int64) >> 16 for v in (back, x + 0.0)]
    apart = np.abs(bits[0] - bits[1]).reshape(-1, 3, 32).max(axis=2)
    assert set(apart[found.groups == Group.EXACT]) == {0}
    assert set(apart[found.groups > Group.OFF]) == {0, 1}
    # A float16 step has 2^-24 for its least and 65504 for its largest, a bfloat16 one
    # 2^-133 and nearly 2^128: what lies well between is found.
    least, most = (-126, 120) if fmt == "w4g32" else (-14, 15)
    between = (exponents >= least) & (exponents <= most)
    assert (found.groups[between] != Group.OFF).all()
    if fmt != "w4g32":  # beyond 2^-120 some groups are zeros, which any step gives
        beyond = (exponents < -26) & (exponents > -120) | (exponents > 17)
        assert (found.groups[beyond] == Group.OFF).all()


def test_a_step_stores_plus_or_minus_eight_but_not_both() -> None:
    levels = np.arange(32) % 16 - 8
    levels[1] = 8  # beside -8, and beside odd levels, which leave no larger step
    found = lattice.recover(bf16(np.float32(0.01) * levels.astype(np.float32))[None])
    assert found.groups.tolist() == [[Group.OFF]]


def test_what_is_off_the_lattice_is_packed_as_usual() -> None:
    x = bf16(np.random.default_rng(11).standard_normal((16, 64)))
    usual = halfbyte.quantize(x, "q4_0")
    np.testing.assert_array_equal(lattice.recover(x).weight.data, usual.data)


@pytest.mark.parametrize("fmt", ["q4_0", "w4g32"])
def test_blocks_round_trip_bit_for_bit(fmt: str) -> None:
    """Whoever stored levels and a 16-bit step gets weights of the same bits back."""
    x = np.random.default_rng(12).standard_normal((64, 512)).astype(np.float32)
    x = bf16(halfbyte.dequantize(halfbyte.quantize(x, fmt)))
    found = lattice.recover(x)
    assert found.share(Group.EXACT) == 1.0
    np.testing.assert_array_equal(bf16(halfbyte.dequantize(found.weight)), x)


def test_the_ordinary_quantizer_loses_what_this_keeps() -> None:
    x, _ = trained(13, 128, 1024)
    lost = halfbyte.dequantize(halfbyte.quantize(x, "q4_0")) - x
    kept = halfbyte.dequantize(lattice.recover(x).weight) - x
    # Half an ulp of bfloat16 and of float16, against half a step in most groups.
    assert np.square(kept).sum() < np.square(lost).sum() / 100


def test_any_number_of_threads_finds_the_same() -> None:
    x, _ = trained(14, 96, 512)
    with halfbyte.threads(1):
        one = lattice.recover(x)
    with halfbyte.threads(2):
        two = lattice.recover(x)
    assert one.weight.data.tobytes() == two.weight.data.tobytes()
    assert one.groups.tobytes() == two.groups.tobytes()


def test_bfloat16_arrays_are_taken_as_they_are() -> None:
    x, _ = trained(15, 4, 64)
    half = x.astype(ml_dtypes.bfloat16)
    assert lattice.recover(half).weight.data.tobytes() == (
        lattice.recover(x).weight.data.tobytes()
    )


@every_target
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_is_on_no_lattice(value: float) -> None:
    """In C++, where nobody has looked for it before."""
    x = trained(17, 1, 64)[0]
    x[0, 40] = value
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    found = lattice.recover_bits(bits)
    assert found.groups[0, 0] >= Group.LEVELS
    assert found.groups[0, 1] == 0
    alone = lattice.recover_bits(bits[:, :32].copy())
    np.testing.assert_array_equal(found.weight.data[:18], alone.weight.data)
    assert lattice.recover_bits(bits, "w4").groups.tolist() == [[0]]


# ---- the same levels in other formats


@every_target
@pytest.mark.parametrize("fmt", ["q8_0", "w4g32"])
def test_formats_that_hold_them_too(fmt: str) -> None:
    x = trained(21, 64, 1024)[0]
    q4_0, other = lattice.recover(x), lattice.recover(x, fmt)
    assert other.on_lattice == 1.0
    if fmt == "q8_0":  # whose step is the same
        np.testing.assert_array_equal(
            other.weight.dequantize(), q4_0.weight.dequantize()
        )
        np.testing.assert_array_equal(other.groups, q4_0.groups)
    same = bf16(other.weight.dequantize()) == x
    # A bfloat16 step is off by 2^-9 of itself at most, so that up to half of the weights
    # round to a neighbour; a float16 one by 2^-12.
    assert same.mean() > (0.99 if fmt == "q8_0" else 0.5)
    assert np.abs(other.weight.dequantize() - x).max() <= np.abs(x).max() * 2.0**-7


@every_target
@pytest.mark.parametrize("fmt", ["q8_0", "w4g32", "w2", "w4", "w8"])
def test_there_it_is_what_the_reference_finds_as_well(fmt: str) -> None:
    rng = np.random.default_rng(22)
    bits = {"w2": 2, "w4": 4, "w8": 8}.get(fmt, 4)
    # Subnormal numbers, and less than a 16-bit step holds.
    small = np.float32(2.0**-126 if fmt in ("w2", "w4", "w8") else 2.0**-100)
    mixed = np.concatenate(
        [
            trained(23, 8, 256)[0],
            trained_rows(24, 8, 256, bits)[0],
            -trained_rows(25, 8, 256, bits)[0],
            trained_rows(26, 8, 256, bits)[0] * small,
            trained_rows(27, 8, 256, bits)[0] * np.float32(2.0**100),
            bf16(rng.standard_normal((8, 256)) * 0.02),
            bf16(rng.integers(-1, 2, (8, 256)) * rng.uniform(0, 1, (8, 1))),
            np.where(
                rng.uniform(size=(16, 256)) < 0.01,
                trained_rows(28, 16, 256, bits)[0],
                0,
            ),
            np.zeros((1, 256)),
        ]
    ).astype(np.float32)
    mixed = bf16(mixed)
    found = lattice.recover(mixed, fmt)
    weight, groups = reference.recover(mixed, fmt)
    np.testing.assert_array_equal(found.groups, groups)
    np.testing.assert_array_equal(found.weight.data, weight.data.reshape(-1))
    if weight.scales is not None:
        np.testing.assert_array_equal(found.weight.scales, weight.scales)
    assert {1, 2, 4} <= set(np.unique(groups))


# ---- one step for a row


def trained_rows(
    seed: int, n: int, k: int, bits: int
) -> tuple[F32, NDArray[np.int64], F32]:
    """A matrix as training for the mobile schema leaves it, its levels and steps."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, k)) * rng.uniform(0.003, 0.1, (n, 1))
    half = 1 << (bits - 1)
    # Of the largest magnitude, where the error is least: 2 bits cut off most of it.
    near = {2: 0.6, 4: 0.85, 8: 1.0}[bits] * rng.uniform(0.8, 1.1, (n, 1))
    steps = (np.abs(x).max(axis=1, keepdims=True) / half * near).astype(np.float32)
    levels = np.clip(np.rint(x / steps), -half, half - 1)
    return bf16(steps * levels.astype(np.float32)), levels.astype(np.int64), steps


def row_levels(w: halfbyte.Weight) -> NDArray[np.int64]:
    return np.rint(w.dequantize() / np.abs(w.scales[:, None])).astype(np.int64)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("k", [64, 1536])
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_come_back_bit_for_bit(bits: int, k: int, sign: int) -> None:
    x, levels, _ = trained_rows(30, 96, k, bits)
    found = lattice.recover(sign * x, f"w{bits}")
    assert found.groups.shape == (96, 1)
    assert found.share(Group.EXACT) == 1.0
    np.testing.assert_array_equal(bf16(found.weight.dequantize()), sign * x)
    same = without_factor(row_levels(found.weight)) == without_factor(sign * levels)
    if bits < 8:
        assert same.all()
    else:  # of 8 bits a few levels fit a step nearby as well: the weights are the same
        assert same.all(axis=1).mean() > 0.9
    # A negative step only where a level of +half asks for it.
    top = (sign * levels).max(axis=1) == 1 << (bits - 1)
    np.testing.assert_array_equal(found.weight.scales < 0, top)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("k", [64, 2048])
def test_no_row_of_other_weights_is_on_it(bits: int, k: int) -> None:
    rng = np.random.default_rng(31)
    draws = [rng.standard_normal, lambda size: rng.standard_t(4, size), rng.laplace]
    for draw in draws:
        found = lattice.recover(bf16(draw(size=(1000, k)) * 0.02), f"w{bits}")
        assert np.unique(found.groups).tolist() == [Group.OFF]
    nudged = trained_rows(32, 256, k, bits)[0] * (
        1 + 0.02 * rng.standard_normal((256, k))
    )
    found = lattice.recover(bf16(nudged), f"w{bits}")
    assert np.unique(found.groups).tolist() == [Group.OFF]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_row_of_few_weights_is_ambiguous(bits: int) -> None:
    fewest = 32 if bits == 8 else 4
    for count in (1, fewest - 1, fewest):
        x = np.zeros((1, 64), np.float32)
        x[0, :count] = np.where(np.arange(count) % 3, 0.5, -0.25)
        (kind,) = lattice.recover(x, f"w{bits}").groups.ravel()
        assert kind == (Group.EXACT if count == fewest else Group.AMBIGUOUS)


@pytest.mark.parametrize("fmt", ["q4_0", "w4g32", "w2", "w4", "w8"])
@pytest.mark.parametrize("quantizer", ["rtn", "mse", "imatrix"])
def test_what_is_off_goes_to_the_quantizer(fmt: str, quantizer: str) -> None:
    bits = {"w2": 2, "w8": 8}.get(fmt, 4)
    on = trained_rows(33, 16, 64, bits)[0]
    off = bf16(np.random.default_rng(34).standard_normal((16, 64)))
    x = np.stack([on, off], axis=1).reshape(32, 64)
    importance = np.linspace(0, 1, 64, dtype=np.float32)
    how = {"quantizer": quantizer}
    if quantizer == "imatrix":
        how["importance"] = importance
    found = lattice.recover(x, fmt, **how).weight.dequantize()
    alone = lattice.recover(on, fmt).weight.dequantize()
    np.testing.assert_array_equal(found[::2], alone)
    other = halfbyte.quantize(off, fmt, **how).dequantize()
    np.testing.assert_array_equal(found[1::2], other)


def test_formats_without_a_lattice() -> None:
    for fmt in ("f16", "q6_k", "q4_k"):
        with pytest.raises(ArgumentError, match=f"no lattice is stored in {fmt}"):
            lattice.recover(np.zeros((1, 256), np.float32), fmt)


# ---- and in all of them


def test_zeros_of_either_sign_are_zeros() -> None:
    x, _ = trained(16, 4, 64)
    minus = np.where(x == 0, np.float32(-0.0), x)
    plain, found = lattice.recover(x), lattice.recover(minus)
    assert np.signbit(minus[x == 0]).any()
    assert found.groups.tobytes() == plain.groups.tobytes()
    assert found.weight.data.tobytes() == plain.weight.data.tobytes()


def test_an_empty_matrix() -> None:
    found = lattice.recover(np.zeros((0, 64), np.float32))
    assert found.groups.shape == (0, 2)
    assert lattice.recover(np.zeros((0, 64), np.float32), "w4").groups.size == 0
    assert lattice.recover(np.zeros((3, 0), np.float32), "w4").groups.size == 0
    assert found.on_lattice == 1.0
    assert repr(found) == "Recovery(0 x 64: empty)"


def test_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"a multiple of 32\), got \(2, 33\)"):
        lattice.recover(np.zeros((2, 33), np.float32))
    x = np.zeros((2, 64), np.float32)
    x[1, 40] = np.pi
    with pytest.raises(
        NumericalError, match=r"a bfloat16 number, got 3\.14.* at \(1, 40\)"
    ):
        lattice.recover(x)
    x[1, 40] = np.inf
    with pytest.raises(NumericalError, match=r"finite values, got inf at \(1, 40\)"):
        lattice.recover(x)
