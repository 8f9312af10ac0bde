# tests/python/test_peers.py
# SPDX-License-Identifier: Apache-2.0
"""The comparison with other libraries: what it selects, accepts, says and draws."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import chart
import halfbyte
import numpy as np
import peer
import peers
import pytest
from halfbyte import doctor
from numpy.typing import NDArray
from peer import ours, problem
from peer.answer import Rounding, WrongAnswerError, check
from peer.problem import Case, Weights
from peer.roofs import Roof, seconds_at_roof
from peer.worker import SideFailedError, Worker
from synth import directory, shapes

ROOT = Path(__file__).parents[2]
SMALL = "270m-up"


def exact(w: Weights, x: NDArray[Any]) -> NDArray[np.float64]:
    return x.astype(np.float64) @ problem.dequantize(w, slice(None)).T


def rounded(x: NDArray[Any], block: int) -> NDArray[np.float64]:
    blocks = x.reshape(len(x), -1, block).astype(np.float64)
    step = np.abs(blocks).max(-1, keepdims=True) / 127
    return (np.rint(blocks / step) * step).reshape(x.shape)


def static(case: Case, w: Weights, x: NDArray[Any]) -> NDArray[np.float64]:
    step_in, step_out = map(float, problem.steps(case))
    y = exact(w, np.rint(x / step_in) * step_in)
    return np.clip(np.rint(y / step_out), -128, 127) * step_out


# ---- the problem


@pytest.mark.parametrize("fmt", problem.BITS)
def test_copies_differ_and_can_be_drawn_again(fmt: str) -> None:
    case = Case(fmt, SMALL, 1, 1)
    first, second = problem.weights(case, 0), problem.weights(case, 1)
    assert np.mean(first.codes == second.codes) < 0.6  # sign and exponent repeat
    np.testing.assert_array_equal(first.codes, problem.weights(case, 0).codes)
    wide = problem.dequantize(first, slice(None))
    assert wide.shape == (case.n, case.k)
    assert np.isfinite(wide).all()


def test_weights_stream_through_memory_for_few_tokens_only() -> None:
    for tokens in (1, 32):
        case = Case("q4_0", "e2b-up", tokens, 1)
        assert problem.copies(case, 512) * problem.nbytes(case) >= 512 << 20
    assert problem.copies(Case("q4_0", "e2b-up", 512, 1), 512) == 1
    assert problem.nbytes(Case("q4_0", "e2b-up", 1, 1)) == 1536 * 12288 // 32 * 18


def test_low_bits_come_first() -> None:
    codes = np.array([[0xF0], [0xE4], [0x81]], np.uint8)
    assert problem.levels(codes[:1], 4).tolist() == [[-8, 7]]
    assert problem.levels(codes[1:2], 2).tolist() == [[-2, -1, 0, 1]]
    assert problem.levels(codes[2:], 8).tolist() == [[-127]]


def test_our_blocks_mean_the_same() -> None:
    w = problem.weights(Case("q4_0", SMALL, 1, 1), 0)
    got = halfbyte.dequantize(ours.pack_q4_0(w))
    np.testing.assert_array_equal(got, problem.dequantize(w, slice(None)))


def test_a_format_that_is_not_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halfbyte, "formats", lambda: ["f32"])
    with pytest.raises(ours.NotInThisBuildError, match="q4_0: not in this build"):
        ours.ours("q4_0")
    with pytest.raises(ours.NotInThisBuildError):
        peer.side(peer.OURS).how(Case("w3", SMALL, 1, 1))


# ---- the check


def damage_sign(y: NDArray[Any], w: Weights, x: NDArray[Any]) -> None:
    wide = problem.dequantize(w, slice(None))
    y -= 2 * x[:, 64:80].astype(np.float64) @ wide[:, 64:80].T  # half a block


def damage_scale(y: NDArray[Any], w: Weights, x: NDArray[Any]) -> None:
    del w, x
    y *= 1.02


def damage_row(y: NDArray[Any], w: Weights, x: NDArray[Any]) -> None:
    del w, x
    y[:, [5, 6]] = y[:, [6, 5]]


def damage_nan(y: NDArray[Any], w: Weights, x: NDArray[Any]) -> None:
    del w, x
    y[-1, -1] = np.nan


DAMAGES = [damage_sign, damage_scale, damage_row, damage_nan]
Damage = Callable[[NDArray[Any], Weights, NDArray[Any]], None]


@pytest.fixture(params=[("q4_0", 32), ("w2", 640), ("w4", 128), ("w8", 640)])
def dynamic(request: pytest.FixtureRequest) -> Any:
    """A case, its weights and input, and the result with activations of 8 bits."""
    fmt, block = request.param
    case = Case(fmt, SMALL, 5, 1)
    w, x = problem.weights(case, 0), problem.activations(case)
    return case, w, x, exact(w, rounded(x, block)), Rounding(block=block)


def test_rounded_activations_pass(dynamic: Any) -> None:
    case, w, _, y, how = dynamic
    error = check(case, w, y.astype(np.float32), how)
    assert 0.002 < error < 0.02


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_mistake_is_no_rounding(dynamic: Any, damage: Damage) -> None:
    case, w, x, y, how = dynamic
    damage(y, w, x)
    with pytest.raises(WrongAnswerError):
        check(case, w, y.astype(np.float32), how)


def test_coarser_rounding_than_promised_is_noticed(dynamic: Any) -> None:
    case, w, x, _, how = dynamic
    step = np.abs(x).max() / 63
    y = exact(w, np.rint(x / step) * step)
    with pytest.raises(WrongAnswerError):
        check(case, w, y.astype(np.float32), how)


def test_float_sums_leave_no_room() -> None:
    case = Case("f32", SMALL, 2, 1)
    w, x = problem.weights(case, 0), problem.activations(case)
    y = exact(w, x)
    assert check(case, w, y.astype(np.float32), Rounding()) < 1e-7
    with pytest.raises(WrongAnswerError):
        check(case, w, (y * (1 + 2e-5)).astype(np.float32), Rounding())
    with pytest.raises(WrongAnswerError, match="shape"):
        check(case, w, y[:1].astype(np.float32), Rounding())


@pytest.mark.parametrize("fmt", problem.STATIC)
def test_static_codes_are_exact(fmt: str) -> None:
    case = Case(fmt, SMALL, 4, 1)
    w, x = problem.weights(case, 0), problem.activations(case)
    y, how = static(case, w, x), Rounding(static=True)
    assert check(case, w, y.astype(np.float32), how) < 0.02
    step = float(problem.steps(case)[1])
    y[2, 3] += step if y[2, 3] < 0 else -step  # one code of 8192
    with pytest.raises(WrongAnswerError, match="steps"):
        check(case, w, y.astype(np.float32), how)
    with pytest.raises(WrongAnswerError, match="no multiples"):
        check(case, w, exact(w, x).astype(np.float32), how)


@pytest.mark.parametrize("fmt", problem.STATIC)
def test_sums_in_float32_may_move_codes_near_ties_alone(fmt: str) -> None:
    case = Case(fmt, SMALL, 4, 1)
    w, x = problem.weights(case, 0), problem.activations(case)
    y, how = static(case, w, x), Rounding(static=True, float_sums=True)
    step_in, step = map(float, problem.steps(case))
    sums = exact(w, np.rint(x / step_in) * step_in)
    spread = np.square(np.rint(x / step_in) * step_in) @ (
        np.square(problem.dequantize(w, slice(None))).T
    )
    # How far from a tie the nearest code is, in deviations of float32 sums.
    inside = np.abs(sums / step) < 126
    away = np.abs(0.5 - np.abs(y - sums) / step)
    deviations = away * step / (2.0**-24 * np.sqrt((case.k + 10) * spread))
    deviations[~inside] = np.inf
    for at, passes in (
        (np.argmin(deviations), True),
        (np.argmax(away * inside), False),
    ):
        at = np.unravel_index(at, y.shape)
        moved = y.copy()
        moved[at] += step * np.sign(sums[at] - y[at])
        if passes:
            assert deviations[at] < 6
            check(case, w, moved.astype(np.float32), how)
        else:
            with pytest.raises(WrongAnswerError, match="steps"):
                check(case, w, moved.astype(np.float32), how)


def test_codes_that_are_not_ours_are_counted() -> None:
    how = peer.side("halfbyte").how(Case("w4", SMALL, 4, 1))
    zeros = np.zeros((4, 8), np.float32)
    ours = peers.Answer({0: zeros, 2: zeros}, 0.0)
    other = zeros.copy()
    other[1, :3] = 1.0
    assert peers.other_codes(peers.Answer({0: other, 2: other}, 0.0), ours, how) == 6
    assert peers.other_codes(peers.Answer({0: other}, 0.0), ours, how) == 3
    assert peers.other_codes(ours, None, how) is None
    floats = how._replace(rounding=Rounding())
    assert peers.other_codes(ours, ours, floats) is None


def test_static_inputs_stay_away_from_ties() -> None:
    case = Case("w4", SMALL, 16, 1)
    codes = problem.activations(case) / problem.steps(case)[0]
    assert np.abs(codes - np.rint(codes)).max() < 0.401
    assert np.abs(codes).max() < 128


# ---- the rows


def options(*words: str) -> argparse.Namespace:
    return peers.arguments().parse_args(words)


def test_rows_are_what_was_asked_for() -> None:
    asked = ["--formats", "w2,f32", "--shapes", SMALL, "--tokens", "1,512"]
    found = list(peers.cases(options(*asked, "--threads", "2,1")))
    assert found == [
        Case(fmt, SMALL, tokens, threads)
        for threads in (2, 1)
        for fmt in ("w2", "f32")
        for tokens in (1, 512)
    ]
    everything = list(peers.cases(options()))
    assert len(everything) == 2 * 4 * len(problem.BITS) * len(problem.SHAPES)


def test_all_shapes_of_a_model_have_its_name() -> None:
    words = ["--formats", "w2", "--tokens", "1", "--threads", "1", "--shapes"]
    found = [case.shape for case in peers.cases(options(*words, "31b-up,e2b"))]
    assert found == [s for s in problem.SHAPES if s.startswith("e2b-")] + ["31b-up"]
    assert len(found) > 10


def test_the_mobile_release_has_each_matrix_once() -> None:
    found = list(peers.cases(options("--mobile", "--tokens", "1", "--threads", "1")))
    assert len({(case.format, case.shape) for case in found}) == len(found)
    assert all(case.format in problem.STATIC for case in found)
    shapes = {s for s in problem.SHAPES if s.startswith("e2b-")}
    assert {case.shape for case in found} == shapes - {"e2b-head"}


def test_a_token_goes_through_what_the_release_has() -> None:
    shape = shapes.SIZES["e2b"]
    found: Counter[tuple[str, tuple[int, int]]] = Counter()
    for tensor in directory.tensors(shape, "mobile"):
        layer = re.search(r"layers\.(\d+)\..*(.)_proj\.weight$", tensor.name)
        gate = re.search(r"layers\.\d+\.per_layer_.*\.weight$", tensor.name)
        if gate is None and layer is None:
            continue
        if layer and layer[2] in "kv" and int(layer[1]) >= shape.first_shared:
            continue  # nothing reads them
        bits = 8 if tensor.dtype == "I8" else 4
        rows, columns = tensor.shape
        if ".mlp." in tensor.name and int(layer[1]) >= shape.first_shared:
            bits = 2
        found[f"w{bits}", (columns * 8 // bits, rows)] += 1
    counts = {(f, problem.SHAPES[s]): n for (f, s), n in problem.MOBILE.items()}
    assert found == counts


def test_all_layers_are_added_up_where_all_were_timed() -> None:
    case = {"tokens": 1, "threads": 2}
    taken = {"halfbyte": 1e-3, "litert": 2e-3}
    cases = [
        case
        | {"format": fmt, "shape": shape}
        | {"sides": {n: {"seconds": {"median": s}} for n, s in taken.items()}}
        for fmt, shape in problem.MOBILE
    ]
    (found,) = peers.whole_layers(cases)
    assert found["seconds"] == pytest.approx({"halfbyte": 0.275, "litert": 0.55})
    assert "1 token, 2 threads: halfbyte 275.0 ms, litert 2.00 times" in (
        peers.describe(found)
    )
    found |= {"tokens": 512, "threads": 1}
    assert "512 tokens, 1 thread: halfbyte" in peers.describe(found)
    assert peers.whole_layers(cases[1:]) == []
    del cases[3]["sides"]["litert"]
    assert peers.whole_layers(cases)[0]["seconds"].keys() == {"halfbyte"}


def test_we_always_take_part() -> None:
    assert peers.chosen(["torch"]) == ["halfbyte", "torch"]
    with pytest.raises(SystemExit, match="jax"):
        peers.chosen(["torch", "jax"])
    with pytest.raises(SystemExit, match="q5_0"):
        list(peers.cases(options("--formats", "q5_0")))


def test_a_missing_side_says_how_to_get_it() -> None:
    assert peers.hint("onnxruntime") == "not installed: pip install onnxruntime onnx"


def test_ratios_compare_neighbours_in_time() -> None:
    case = Case("w8", "e2b-up", 1, 1)
    size = problem.nbytes(case)
    roofs = [Roof(speed, 200.0, 50.0) for speed in (20.0, 10.0, 20.0)]
    best = [size / roof.read_gb_per_s / 1e9 for roof in roofs]
    turns = [
        peers.Turns("halfbyte", "", 0.0, [2 * best[0], 2 * best[1], 9 * best[2]]),
        peers.Turns("litert", "", 0.0, [4 * best[0], 4 * best[1], 4 * best[2]]),
    ]
    told = peers.told(case, turns, roofs)
    litert = told["sides"]["litert"]
    assert litert["our_time_over_theirs"] == pytest.approx(0.5)
    assert litert["roof_share"] == pytest.approx(0.25)
    assert litert["gb_per_s"] == pytest.approx(size / 4 / best[0] / 1e9)
    assert told["sides"]["halfbyte"]["roof_share"] == pytest.approx(0.5)
    assert told["dot_gmac_per_s"]["mean"] == 200.0


def test_the_roof_is_the_lower_one() -> None:
    one, many = (Case("w4", "e2b-up", tokens, 1) for tokens in (1, 512))
    macs, size = 1536 * 12288, 1536 * 12288 // 2
    both = Roof(20.0, 200.0, 50.0)
    assert seconds_at_roof(one, both) == pytest.approx(size / 20e9)
    assert seconds_at_roof(many, both) == pytest.approx(512 * macs / 200e9)
    assert seconds_at_roof(Case("bf16", "e2b-up", 4, 1), both) is None
    dense = Case("bf16", "e2b-up", 1, 1)
    assert seconds_at_roof(dense, both) == pytest.approx(4 * size / 20e9)
    floats = Case("f32", "e2b-up", 512, 1)
    assert seconds_at_roof(floats, both) == pytest.approx(512 * macs / 50e9)


# ---- the sides


# Sums of two products of bytes in 16 bits, which 8-bit weights and activations overflow:
# what oneDNN and MLAS do where no instruction sums four in 32.
SATURATES = {("torch", "w8"), ("onnxruntime", "w8")}
HAS_VNNI = any("vnni" in feature for feature in doctor.facts()["cpu"]["features"])


@pytest.mark.parametrize("name", peer.SIDES)
def test_an_installed_side_gives_right_answers(name: str) -> None:
    kind = peer.side(name)
    if not kind.available():
        pytest.skip(peers.hint(name))
    worker, right = Worker(name, 1), 0
    try:
        for fmt in problem.BITS:
            case = Case(fmt, SMALL, 3, 1)
            try:
                how = kind.how(case)
            except ours.NotInThisBuildError:
                continue
            if how is None or ((name, fmt) in SATURATES and not HAS_VNNI):
                continue
            peers.answer(case, 2, worker, how)
            assert worker.run(2) > 0
            right += 1
    finally:
        worker.close()
    assert right > 0


def test_only_what_equals_our_results_is_not_compared_again() -> None:
    class Told:
        def prepare(self, case: Case, count: int) -> list[NDArray[Any]]:
            del case, count
            return [result, result]

    case = Case("w4", SMALL, 3, 1)
    y = static(case, problem.weights(case, 0), problem.activations(case))
    result = y.astype(np.float32)
    how = peer.side(peer.OURS).how(case)
    assert peers.answer(case, 1, Told(), how).error < 0.02
    told = peers.Answer({0: result}, 0.5)
    assert peers.answer(case, 1, Told(), how, told).error == 0.5
    result = result + 1.0
    with pytest.raises(WrongAnswerError):
        peers.answer(case, 1, Told(), how, told)


def test_a_side_that_raises_can_be_asked_again() -> None:
    worker = Worker("halfbyte", 1)
    try:
        with pytest.raises(SideFailedError, match="KeyError"):
            worker.prepare(Case("f32", "no such shape", 1, 1), 1)
        assert len(worker.prepare(Case("f32", SMALL, 1, 1), 1)) == 2
    finally:
        worker.close()


# ---- the script and the chart


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a quick run of our side alone writes and prints."""
    file = tmp_path_factory.mktemp("peers") / "peers.json"
    script = ROOT / "benchmarks" / "peers.py"
    words = "--only halfbyte --formats q4_0,w2 --tokens 1,40 --threads 1 --quick"
    line = [sys.executable, "-W", "error", script, *words.split(), "--mib", "8"]
    done = subprocess.run(
        [*map(str, line), "--shapes", SMALL, "--json", str(file)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(file.read_text()), done.stdout


def test_the_script_runs(result: Any) -> None:
    told, printed = result
    assert [(c["format"], c["tokens"]) for c in told["cases"]] == [
        (fmt, tokens) for fmt in ("q4_0", "w2") for tokens in (1, 40)
    ]
    first = told["cases"][0]["sides"]["halfbyte"]
    assert len(first["seconds"]["samples"]) == 3
    assert first["our_time_over_theirs"] == 1.0
    assert told["environment"]["threads"] == [1]
    assert "q4_0" in printed
    assert "640 x 2048" in printed


def test_the_chart_is_a_picture(result: Any) -> None:
    told = json.loads(json.dumps(result[0]))
    told["environment"]["cpu"]["model"] = "Core <i9> & more"
    case = told["cases"][0]
    slower = {**case["sides"]["halfbyte"], "roof_share": 0.01}
    case["sides"] = {"litert": slower, **case["sides"]}
    tree = ElementTree.fromstring(chart.draw(told, None, None))
    space = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in tree.iter(f"{space}text")]
    assert any("Core <i9> & more, 1 thread" in (word or "") for word in words)
    assert words.index("halfbyte") < words.index("litert")
    bars = list(tree.iter(f"{space}rect"))
    assert bars[0].get("class") == "first"
    assert float(bars[0].get("width", 0)) > float(bars[1].get("width", 0)) > 0
    with pytest.raises(SystemExit, match="nothing to draw"):
        chart.draw(told, "31b-up", None)
