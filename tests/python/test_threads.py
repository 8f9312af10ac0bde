# tests/python/test_threads.py
# The same bits for any number of threads, callers and processes.
# SPDX-License-Identifier: Apache-2.0
"""The same bits for any number of threads, callers and processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import halfbyte
import numpy as np
import pytest
import tiny
from halfbyte import targets
from meanwhile import Meanwhile

COUNTS = (1, 2, 3, 7)
IDS = tiny.prompt(60)
PROMPT = "the end of the line and the other one"


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HALFBYTE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    halfbyte.set_num_threads(None)
    yield
    monkeypatch.undo()
    halfbyte.set_num_threads(None)


@pytest.fixture(scope="module")
def path(tiny_gguf: Callable[..., Path]) -> Path:
    return tiny_gguf("e2b", types=tiny.official_type)


# --- Number of threads -----------------------------------------------------------------


def bits(array: Any) -> bytes:
    assert array.dtype == np.float32
    return np.ascontiguousarray(array).tobytes()


def test_logits_and_text_do_not_depend_on_threads(path: Path) -> None:
    def answers(threads: int) -> tuple[bytes, str, str]:
        model = halfbyte.load(path, threads=threads)
        drawn = model(PROMPT, max_tokens=40, temperature=1.5, seed=11)
        return bits(model.logits(IDS)), model(PROMPT, max_tokens=40), drawn

    alone = answers(1)
    assert len(alone[2]) > 20
    for threads in COUNTS[1:]:
        assert answers(threads) == alone


def inputs(rows: int, k: int) -> Any:
    rng = np.random.Generator(np.random.PCG64([rows, k]))
    return rng.standard_normal((rows, k), np.float32)


OPS: dict[str, Callable[[Any], Any]] = {
    "quantize": lambda x: halfbyte.quantize(x, "q6_k").dequantize(),
    "embedding_rows": lambda x: halfbyte.embedding_rows(
        halfbyte.quantize(x, "q8_0"), [len(x) - 1, 0]
    ),
    "rms_norm": lambda x: halfbyte.rms_norm(x, x[0]),
    "rope": lambda x: halfbyte.rope(x.reshape(len(x), 4, -1), np.arange(len(x))),
    "softmax": halfbyte.softmax,
    "gelu_mul": lambda x: halfbyte.gelu_mul(x, x[::-1]),
}
for _format in ("f32", "bf16", "q4_0", "q6_k"):
    OPS[f"linear {_format}"] = lambda x, fmt=_format: halfbyte.linear(
        x, halfbyte.quantize(inputs(33, x.shape[1]), fmt)
    )
    OPS[f"linear {_format} float"] = lambda x, fmt=_format: halfbyte.linear(
        x, halfbyte.quantize(inputs(33, x.shape[1]), fmt), activations="f32"
    )


@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize("op", OPS)
def test_ops_do_not_depend_on_threads(op: str, rows: int) -> None:
    x = inputs(rows, 512)
    results = set()
    for threads in COUNTS:
        with halfbyte.threads(threads):
            results.add(bits(OPS[op](x)))
    assert len(results) == 1


# --- Several callers -------------------------------------------------------------------


def test_callers_at_once_get_what_they_get_alone(path: Path) -> None:
    model = halfbyte.load(path, threads=2)
    prompts = [tiny.prompt(20 + 7 * i, seed=i) for i in range(6)]

    def work(prompt: list[int]) -> tuple[bytes, str]:
        session = model.session()
        logits = session.logits(prompt)
        session.reset()
        return bits(logits), session(prompt, max_tokens=20, temperature=1, seed=5)

    alone = [work(prompt) for prompt in prompts]
    assert len(set(alone)) == len(alone)
    together = threading.Barrier(len(prompts))

    def at_once(prompt: list[int]) -> tuple[bytes, str]:
        together.wait(timeout=30)
        return work(prompt)

    with ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(3):
            assert list(pool.map(at_once, prompts, timeout=100)) == alone


def test_tokenizers_are_shared(path: Path) -> None:
    model = halfbyte.load(path)
    texts = [f"the end {i} of the line 中 {'x' * i}" for i in range(64)]
    alone = [model.tokenize(text) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(model.tokenize, texts, timeout=100)) == alone
        assert list(pool.map(model.detokenize, alone, timeout=100)) == texts


def test_a_second_thread_in_a_session_is_told(path: Path) -> None:
    session = halfbyte.load(path, threads=1).session()
    done = threading.Event()

    def occupy() -> None:
        while not done.is_set():
            with contextlib.suppress(RuntimeError):  # the other one was inside
                session.reset()
                session.logits(IDS)

    def intrude() -> None:
        while True:
            len(session.tokens)

    occupant = threading.Thread(target=occupy)
    occupant.start()
    try:
        with pytest.raises(RuntimeError, match="in use by another thread"):
            intrude()
    finally:
        done.set()
        occupant.join()
    session.reset()
    assert session.position == 0


@pytest.mark.parametrize("use", ["stream", "logits", "truncate", "perplexity"])
def test_a_second_thread_comes_between_no_two_steps(path: Path, use: str) -> None:
    """What a call does to a session in several steps is done by one thread alone."""
    model = halfbyte.load(path, threads=1)
    begun = model.stream(IDS, max_tokens=2)
    uses: dict[str, Callable[[], Any]] = {
        "stream": lambda: [piece.text for piece in model.stream(IDS, max_tokens=3)],
        "logits": lambda: bits(model.logits(IDS)),
        "truncate": lambda: model._session.truncate(3),
        "perplexity": lambda: model.perplexity(IDS),
    }
    alone = uses[use]()
    raised: list[Exception] = []

    def intrude() -> None:
        for intruder in (*uses.values(), lambda: next(begun)):
            try:
                intruder()
            except RuntimeError as error:
                raised.append(error)

    entered: list[threading.Thread] = []

    def act() -> None:
        if threading.current_thread() in entered:
            return
        entered.append(threading.Thread(target=intrude))
        entered[-1].start()
        entered[-1].join()

    sequence = model._sequence
    sequence.core = Meanwhile(sequence.core, act)  # type: ignore[assignment]
    assert uses[use]() == alone
    assert entered
    assert len(raised) == len(entered) * 5
    assert all("session is in use by another thread" in str(e) for e in raised)


def test_a_daemon_thread_may_compute_while_the_process_ends() -> None:
    """Python before 3.14 ends such a thread by unwinding it, when it wants the GIL.

    One of them is in short calls, which ask for it on return; the others in a long one,
    which asks for it now and then to see whether Ctrl-C was pressed.
    """
    code = """if True:
        import halfbyte, numpy as np, threading, time
        model = halfbyte.load("halfbyte:tiny", threads=2)
        w = halfbyte.quantize(np.ones((2048, 2048), np.float32), "q4_0")
        x = np.ones((4096, 2048), np.float32)
        running = threading.Semaphore(0)
        def forever(call):
            running.release()
            while True:
                call()
        calls = [lambda: model.session()("A", max_tokens=900)]
        calls += 2 * [lambda: halfbyte.linear(x, w, activations="f32")]
        for call in calls:
            threading.Thread(target=forever, args=(call,), daemon=True).start()
            running.acquire()
        time.sleep(0.1)
        print("done", flush=True)"""
    for _ in range(3):  # that a thread is inside when the end comes is no certainty
        line = [sys.executable, "-c", code]
        done = subprocess.run(
            line, check=False, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# --- Fork ------------------------------------------------------------------------------


def in_child(work: Callable[[], bytes], seconds: float = 30) -> bytes:
    """What `work` returns in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = work()
            os.write(writer, struct.pack("<I", len(result)) + result)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], seconds)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError("the child hangs")
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
    finally:
        os.waitpid(pid, 0)
    assert len(data) == 4 + struct.unpack("<I", data[:4])[0]
    return data[4:]


FORKING = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@FORKING
def test_a_forked_child_computes_the_same(path: Path) -> None:
    model = halfbyte.load(path, threads=3)
    session = model.session()
    whole = bits(session.logits(IDS))  # the pool is warm, and the session not empty

    def continued() -> bytes:
        return bits(session.logits(IDS[:5], last=True))

    def anew() -> bytes:
        logits = bits(model.logits(IDS))
        # A child begins with the thread that forked; the others were started anew.
        assert len(list(Path("/proc/self/task").iterdir())) == 3
        return logits

    assert in_child(anew) == whole
    assert in_child(continued) == continued()
    assert bits(model.logits(IDS)) == whole  # the parent's threads are still there


@FORKING
def test_a_fork_in_the_middle_of_a_call(path: Path) -> None:
    model = halfbyte.load(path, threads=3)
    whole = bits(model.logits(IDS))
    done = threading.Event()

    def busy() -> None:
        session = model.session()
        while not done.is_set():
            session.reset()
            session.logits(IDS)

    other = threading.Thread(target=busy)
    other.start()
    try:
        for _ in range(10):
            assert in_child(lambda: bits(model.session().logits(IDS))) == whole
    finally:
        done.set()
        other.join()


# --- How many --------------------------------------------------------------------------


def test_the_default_fits_this_process() -> None:
    assert 1 <= halfbyte.num_threads() <= len(os.sched_getaffinity(0))
    assert "allowed" in targets.thread_reason()


def test_blocks_nest_and_end() -> None:
    default = halfbyte.num_threads()
    halfbyte.set_num_threads(5)
    assert halfbyte.num_threads() == 5
    assert targets.thread_reason() == "halfbyte.set_num_threads"
    with halfbyte.threads(3):
        assert halfbyte.num_threads() == 3
        assert targets.thread_reason() == "halfbyte.threads"
        with contextlib.suppress(KeyError), halfbyte.threads(2):
            assert halfbyte.num_threads() == 2
            raise KeyError
        assert halfbyte.num_threads() == 3
    assert halfbyte.num_threads() == 5
    halfbyte.set_num_threads(None)
    assert halfbyte.num_threads() == default


def test_a_block_counts_in_its_own_thread() -> None:
    halfbyte.set_num_threads(5)
    with halfbyte.threads(3), ThreadPoolExecutor(1) as pool:
        assert pool.submit(halfbyte.num_threads).result() == 5


@pytest.mark.parametrize("n", [1, 1024, np.int64(2)])
def test_what_counts_as_a_number_of_threads(n: Any) -> None:
    halfbyte.set_num_threads(n)
    assert halfbyte.num_threads() == n


@pytest.mark.parametrize("n", [0, -1, 1025, 2**70, True])
def test_what_does_not(n: int, path: Path) -> None:
    for call in (halfbyte.set_num_threads, lambda n: halfbyte.threads(n).__enter__()):
        with pytest.raises(halfbyte.ArgumentError, match="n: expected"):
            call(n)
    with pytest.raises(halfbyte.ArgumentError, match="threads: expected"):
        halfbyte.load(path, threads=n)
    with pytest.raises(TypeError):
        halfbyte.set_num_threads(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variables", "count", "reason"),
    [
        ({"HALFBYTE_NUM_THREADS": "3"}, 3, "HALFBYTE_NUM_THREADS=3"),
        ({"OMP_NUM_THREADS": "4,2"}, 4, "OMP_NUM_THREADS=4"),
        (
            {"HALFBYTE_NUM_THREADS": "3", "OMP_NUM_THREADS": "4"},
            3,
            "HALFBYTE_NUM_THREADS=3",
        ),
        ({"HALFBYTE_NUM_THREADS": " 1024 "}, 1024, "HALFBYTE_NUM_THREADS=1024"),
        ({"HALFBYTE_NUM_THREADS": ""}, None, "allowed"),
        # Not ours: others may make something of it.
        ({"OMP_NUM_THREADS": "many"}, None, "allowed"),
        ({"OMP_NUM_THREADS": "0"}, None, "allowed"),
        ({"OMP_NUM_THREADS": "9" * 5000}, None, "allowed"),
    ],
)
def test_the_environment(
    variables: dict[str, str],
    count: int | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = halfbyte.num_threads()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert halfbyte.num_threads() == default  # looked up once, until told to again
    halfbyte.set_num_threads(None)
    assert halfbyte.num_threads() == (count or default)
    assert reason in targets.thread_reason()
    halfbyte.set_num_threads(2)
    assert halfbyte.num_threads() == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("many", "'many'"),
        ("0", "'0'"),
        ("-1", "'-1'"),
        ("1.5", "'1.5'"),
        ("1025", "'1025'"),
        ("4,2", "'4,2'"),
        ("9" * 5000, f"'{'9' * 64}'"),  # more digits than int() takes
        ("1\n2", r"'1\n2'"),
    ],
)
def test_a_number_in_the_environment_that_is_none(
    text: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALFBYTE_NUM_THREADS", text)
    expected = (
        f"HALFBYTE_NUM_THREADS: found {found}; expected a whole number from 1 to 1024"
    )
    with pytest.raises(halfbyte.ArgumentError) as caught:
        halfbyte.set_num_threads(None)
    assert str(caught.value) == expected
    with pytest.raises(halfbyte.ArgumentError, match="HALFBYTE_NUM_THREADS"):
        halfbyte.rms_norm(np.ones((2, 32), np.float32), np.ones(32, np.float32))
    halfbyte.set_num_threads(2)  # what was asked for by name goes before it
    assert halfbyte.num_threads() == 2


def test_a_variable_may_be_set_after_the_import() -> None:
    code = """
import halfbyte, os
os.environ["HALFBYTE_NUM_THREADS"] = "3"
print(halfbyte.num_threads())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, timeout=60
    )
    assert done.stdout == b"3\n"


def test_affinity_is_respected() -> None:
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import halfbyte
print(halfbyte.num_threads(), halfbyte.targets.thread_reason())
"""
    env = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, check=True, capture_output=True, env=env, timeout=60)
    assert done.stdout.startswith(b"1 1 CPU allowed")


def test_a_model_has_its_own_number(path: Path) -> None:
    model, free = halfbyte.load(path, threads=3), halfbyte.load(path)
    with halfbyte.threads(2):
        assert (model.threads, free.threads) == (3, 2)
        assert model.report().threads_reason == "threads="
        assert free.report().threads_reason == "halfbyte.threads"
