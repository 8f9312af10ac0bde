# tests/python/test_onednn.py
# oneDNN: right where it is, and no difference where it is not.
# SPDX-License-Identifier: Apache-2.0
"""oneDNN: right where it is, and no difference where it is not.

What needs the library is skipped without it. The rest runs processes of its own, since
the library is opened once a process and for good.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import halfbyte
import ml_dtypes
import numpy as np
import pytest
from halfbyte import _core, _onednn, doctor, reference
from halfbyte.errors import UnsupportedError
from samples import F32Array, assert_same_bits, normal, sane_rows, sizes
from test_threads import FORKING, in_child

U = 2.0**-24
SMALLEST = 2.0**-126  # of the normal numbers: bfloat16 products flush what is below
VARIABLE = "HALFBYTE_ONEDNN_LIBRARY"
BF16 = bool({"avx512_bf16", "amx_bf16"} & set(doctor.facts()["cpu"]["features"]))


def _why_not(path: str) -> str:
    try:
        _core.open_onednn(path)
    except UnsupportedError as error:
        return str(error)
    return ""


@pytest.fixture
def library() -> Iterator[None]:
    """Turn oneDNN on for a test, or skip it."""
    found = _onednn.status()
    if found.version is None:
        pytest.skip(f"oneDNN: {found.reason}")
    halfbyte.use_onednn()
    yield
    halfbyte.use_onednn(False)


@pytest.fixture(params=["f32", "bf16"])
def fmt(request: pytest.FixtureRequest, library: None) -> str:  # noqa: ARG001
    if request.param == "bf16" and not BF16:
        pytest.skip("oneDNN: this CPU does not multiply bfloat16")
    return str(request.param)


def own(x: Any, w: halfbyte.Weight, **options: Any) -> F32Array:
    """Return what halfbyte's own kernels make of it."""
    halfbyte.use_onednn(False)
    try:
        return halfbyte.linear(x, w, **options)
    finally:
        halfbyte.use_onednn()


def weight(n: int, k: int, fmt: str) -> halfbyte.Weight:
    return halfbyte.quantize(normal(n, k, seed=n + k), fmt)


# ---- results

# The first that it takes, and around a piece of the product (256 tokens, 64 rows), a
# vector and a tile.
FIRST = {"f32": 64, "bf16": 32}
TOKENS = [32, 33, 64, 65, 257, 300]
ROWS = [1, 7, 64, 65, 130]
LENGTHS = [1, 2, 3, 31, 64, 65, 513]


def gamma(n: float) -> float:
    return n * U / (1 - n * U)


def check(m: int, n: int, k: int, fmt: str) -> None:
    w, x = weight(n, k, fmt), normal(m, k, seed=7)
    frame = np.full((m + 2, n + 5), 7, np.float32)
    out = frame[1 : m + 1, 3 : 3 + n]
    halfbyte.linear(x, w, out=out)
    # A term goes through its product and at most K - 1 sums, in whatever order, and the
    # reference rounds once. With BF16 weights x is rounded first and the rest is the
    # same, save that each of K products and sums may be flushed to zero.
    if fmt == "bf16":
        x = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    size = np.abs(x).astype(np.float64) @ np.abs(w.dequantize()).T.astype(np.float64)
    bound = gamma(k + 1) * size + (2 * k * SMALLEST if fmt == "bf16" else 0)
    want = reference.linear(x, reference.Weight(fmt, (n, k), w.data), activations="f32")
    assert (np.abs(out.astype(np.float64) - want) <= bound + SMALLEST).all()
    out[...] = 7
    np.testing.assert_array_equal(frame, 7)  # nothing beside `out` was written


@pytest.mark.parametrize("m", TOKENS)
def test_products_stay_inside_the_bound(m: int, fmt: str) -> None:
    for n in ROWS:
        for k in LENGTHS:
            check(m, n, k, fmt)


def test_it_is_the_library_that_computes(fmt: str) -> None:
    # Or everything else here would pass without it.
    w, x = weight(130, 1024, fmt), normal(FIRST[fmt], 1024)
    assert (halfbyte.linear(x, w) != own(x, w)).any()


@pytest.mark.parametrize(
    ("m", "n", "k"), [(64, 8, 8192), (300, 200, 513), (65, 700, 1024)]
)
def test_the_number_of_threads_changes_no_bit(m: int, n: int, k: int, fmt: str) -> None:
    w, x = weight(n, k, fmt), normal(m, k)
    with halfbyte.threads(1):
        want = halfbyte.linear(x, w)
    for count in (2, 3, 7):
        with halfbyte.threads(count):
            assert_same_bits(halfbyte.linear(x, w), want)


def test_callers_at_the_same_time_change_no_bit(fmt: str) -> None:
    w = weight(200, 777, fmt)
    inputs = [normal(64 + i, 777, seed=i) for i in range(8)]
    want = [halfbyte.linear(x, w) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(lambda x: halfbyte.linear(x, w), inputs))
            for mine, alone in zip(got, want, strict=True):
                assert_same_bits(mine, alone)


def test_strides_and_bias_change_nothing_else(fmt: str) -> None:
    w, x, bias = weight(70, 96, fmt), normal(160, 128)[::2, 5:101], normal(70)
    plain = halfbyte.linear(np.ascontiguousarray(x), w)
    assert_same_bits(halfbyte.linear(x, w), plain)
    assert_same_bits(halfbyte.linear(x, w, bias=bias), plain + bias)


def test_what_is_not_finite_stays_in_its_row(fmt: str) -> None:
    w, x = weight(70, 65, fmt), normal(70, 65)
    clean = halfbyte.linear(x, w)
    for bad in (np.nan, np.inf, -np.inf):
        x[3, 64] = bad
        y = halfbyte.linear(x, w)
        assert not np.isfinite(y[3]).any()
        assert_same_bits(np.delete(y, 3, 0), np.delete(clean, 3, 0))


def test_more_shapes_than_are_remembered(fmt: str) -> None:
    w, x = weight(65, 1024, fmt), normal(164, 1024)
    first = halfbyte.linear(x[:64], w)
    for m in range(64, 164):
        y = halfbyte.linear(x[:m], w)
    assert (y != own(x[:m], w)).any()
    assert_same_bits(halfbyte.linear(x[:64], w), first)


@FORKING
@pytest.mark.usefixtures("library")
def test_a_fork_while_another_thread_plans_products() -> None:
    w, x = weight(8, 32, "f32"), normal(300, 32)
    want = halfbyte.linear(x, w)
    done = threading.Event()

    def plan() -> None:
        while not done.is_set():
            for m in range(64, 164):  # more than are remembered
                halfbyte.linear(x[:m], w)

    with ThreadPoolExecutor(2) as pool:
        planning = [pool.submit(plan) for _ in range(2)]
        try:
            for _ in range(60):
                assert (
                    in_child(lambda: halfbyte.linear(x, w).tobytes()) == want.tobytes()
                )
        finally:
            done.set()
        for thread in planning:
            thread.result()


# ---- what it leaves alone


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", halfbyte.formats())
def test_few_tokens_and_other_formats_are_ours(name: str) -> None:
    k = 2 * max(sizes(name)[0], 128)
    w = halfbyte.Weight(sane_rows(name, 70, k), name, (70, k))
    for m in (FIRST[name] - 1,) if name in FIRST else (1, 31, 64, 257):
        x = normal(m, k)
        assert_same_bits(halfbyte.linear(x, w), own(x, w))


@pytest.mark.usefixtures("library")
def test_float_activations_are_not_rounded() -> None:
    w, x = weight(70, 256, "bf16"), normal(64, 256)
    got = halfbyte.linear(x, w, activations="f32")
    assert_same_bits(got, own(x, w, activations="f32"))


def test_weights_between_two_floats_are_ours(fmt: str) -> None:
    w, x = weight(70, 256, fmt), normal(64, 256)
    data = np.concatenate([w.data[:1], w.data])[1:]
    assert data.ctypes.data % 2 == 1
    odd = halfbyte.Weight(data, fmt, w.shape)
    assert_same_bits(halfbyte.linear(x, odd), own(x, w))


@pytest.mark.usefixtures("library")
def test_empty_products() -> None:
    x, out = np.zeros((64, 0), np.float32), np.full((64, 3), 7, np.float32)
    np.testing.assert_array_equal(halfbyte.linear(x, weight(3, 0, "f32"), out=out), 0)
    assert halfbyte.linear(normal(64, 8), weight(0, 8, "f32")).shape == (64, 0)


def test_off_is_off(fmt: str) -> None:
    w, x = weight(130, 1024, fmt), normal(100, 1024)
    on = halfbyte.linear(x, w)
    # Few rows at a time are ours in any case, and to us every split is the same.
    ours = np.concatenate([halfbyte.linear(part, w) for part in np.split(x, 4)])
    halfbyte.use_onednn(False)
    assert_same_bits(halfbyte.linear(x, w), ours)
    halfbyte.use_onednn()
    assert_same_bits(halfbyte.linear(x, w), on)
    assert (on != ours).any()


# ---- processes of their own


def python(
    code: str, library: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != VARIABLE}
    env |= environment
    if library is not None:
        env[VARIABLE] = library
    env["OPENBLAS_NUM_THREADS"] = "1"
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )


PRODUCT = """
import sys, numpy as np, halfbyte
rng = np.random.default_rng(0)
w = halfbyte.quantize(rng.standard_normal((130, 1024), np.float32), "f32")
x = rng.standard_normal((100, 1024), np.float32)
"""
BITS = PRODUCT + "print(halfbyte.linear(x, w).tobytes().hex())"
FACTS = "import json; from halfbyte.doctor import facts; print(json.dumps(facts()))"


def facts(library: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(python(FACTS, library).stdout)["onednn"]
    assert "\n" not in found["reason"]
    return found


@pytest.mark.usefixtures("library")
def test_it_is_off_until_it_is_asked_for() -> None:
    ours = python(BITS).stdout
    asked = python(PRODUCT + "halfbyte.use_onednn()\n" + BITS[len(PRODUCT) :]).stdout
    assert ours != asked
    assert python(BITS, "auto").stdout == asked
    assert python(BITS, "off").stdout == ours
    again = "halfbyte.use_onednn(False)\n" + BITS[len(PRODUCT) :]
    assert python(PRODUCT + again, "auto").stdout == ours


@pytest.mark.usefixtures("library")
def test_bf16_takes_a_cpu_that_multiplies_it() -> None:
    # oneDNN would convert every number otherwise, which is slow.
    code = BITS.replace('"f32"', '"bf16"')
    asked = python(code, "auto", ONEDNN_MAX_CPU_ISA="AVX512_CORE").stdout
    assert asked == python(code).stdout
    assert (asked != python(code, "auto").stdout) == BF16


@pytest.mark.usefixtures("library")
def test_it_is_opened_when_it_could_be_used() -> None:
    code = (
        PRODUCT
        + """
def opened():
    with open("/proc/self/maps") as maps:
        return "libdnnl" in maps.read()
print(opened())
halfbyte.linear(x, halfbyte.quantize(w.dequantize(), "q8_0"))
print(opened())
halfbyte.linear(x, w)
print(opened())
"""
    )
    assert python(code, "auto").stdout.split() == ["False", "False", "True"]
    assert python(code).stdout.split() == ["False", "False", "False"]


@pytest.mark.usefixtures("library")
def test_a_model_asks_for_it(tiny_gguf: Callable[..., Path]) -> None:
    code = f"""
import halfbyte
from halfbyte import _core
halfbyte.load({str(tiny_gguf())!r})
print(_core.onednn() is not None and _core.onednn()[2])
"""
    assert python(code, "auto").stdout.split() == ["True"]
    assert python(code).stdout.split() == ["False"]


@pytest.mark.usefixtures("library")
def test_it_starts_no_threads() -> None:
    code = (
        PRODUCT
        + """
import os
tasks = lambda: len(os.listdir("/proc/self/task"))
with halfbyte.threads(3):
    halfbyte.linear(x, w)
    before = tasks()
    halfbyte.use_onednn()
    halfbyte.linear(x, w)
    print(before, tasks())
"""
    )
    before, after = map(int, python(code).stdout.split())
    assert before == after >= 3


@pytest.mark.usefixtures("library")
def test_the_doctor_knows_it() -> None:
    idle, asked = facts(None), facts("auto")
    assert idle["version"].startswith("3.")
    assert Path(idle["path"]).exists()
    assert (idle["used"], asked["used"]) == (False, True)
    assert facts(idle["path"]) == asked | {"reason": f"{VARIABLE}={idle['path']}"}


def wrong_libraries(folder: Path) -> Iterator[tuple[str, str]]:
    """Paths that are no oneDNN of version 3, and a word of the reason."""
    yield str(folder / "gone.so"), "gone.so"
    text = folder / "text.so"
    text.write_text("no library\n" * 100)
    yield str(text), "text.so"
    yield _core.__file__, "dnnl_version"
    if shutil.which("cc") is not None:
        source, old = folder / "old.c", folder / "old.so"
        source.write_text(
            "static int v[8] = {2, 6, 3};\nint* dnnl_version(void) { return v; }\n"
        )
        line = ["cc", "-shared", "-fPIC", str(source), "-o", str(old)]
        subprocess.run(line, check=True)
        yield str(old), "2.6.3"


def test_a_wrong_library_changes_nothing(tmp_path: Path) -> None:
    built = "headers" not in _why_not(str(tmp_path / "gone.so"))
    ours = python(BITS).stdout
    for path, word in wrong_libraries(tmp_path):
        found = facts(path)
        assert (found["version"], found["path"], found["used"]) == (None, None, False)
        assert (word if built else "headers") in found["reason"]
        done = python(BITS, path)
        assert done.stdout == ours
        warned = f"RuntimeWarning: {VARIABLE}: oneDNN: {found['reason']}; going on"
        assert warned in done.stderr


def test_it_can_be_forbidden() -> None:
    assert facts("off") == {
        "version": None,
        "path": None,
        "used": False,
        "reason": f"{VARIABLE}=off",
    }
    code = """
import halfbyte
try:
    halfbyte.use_onednn()
except halfbyte.UnsupportedError as error:
    print(error)
halfbyte.use_onednn(False)
"""
    assert python(code, "off").stdout == f"oneDNN: {VARIABLE}=off\n"


def test_a_missing_library_is_no_warning_unless_it_was_named() -> None:
    # Nothing is found here, whatever is installed.
    hidden = "from halfbyte import _onednn\n_onednn._candidates = lambda: iter(())\n"
    done = python(hidden + BITS, "auto")
    assert (done.stdout, done.stderr) == (python(BITS).stdout, "")
