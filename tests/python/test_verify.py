# tests/python/test_verify.py
# SPDX-License-Identifier: Apache-2.0
"""What `halfbyte.verify` finds in files, each with one thing wrong, and between models."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import halfbyte
import mobile
import numpy as np
import pytest
import tiny
import torch
from halfbyte.files import open_file
from halfbyte.lineage import identity
from halfbyte.verification.agreement import compare

TEXT = "the end of the line and the start of the other one\n" * 8
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def floats(folder: Path) -> Path:
    """A small model in F32."""
    return tiny.save_gguf(tiny.build("e2b", wide=True), folder / "floats.gguf")


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    """The same one in the types of the official files."""
    model = tiny.build("e2b", wide=True)
    return tiny.save_gguf(model, folder / "packed.gguf", types=tiny.official_type)


def planted(source: Path, to: Path, name: str, at: int, data: bytes) -> Path:
    """A copy of a file with other bytes at a place in a tensor."""
    raw = bytearray(source.read_bytes())
    offset = next(t.offset for t in open_file(source).tensors if t.name == name) + at
    raw[offset : offset + len(data)] = data
    to.write_bytes(raw)
    return to


# --- One file ----------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.NAMES)
def test_nothing_is_wrong_with_a_whole_file(name: str, tmp_path: Path) -> None:
    model = tiny.build(name, wide=True)
    file = tiny.save_gguf(model, tmp_path / "m.gguf", types=tiny.official_type)
    hf = tiny.save_hf(model, tmp_path / "hf", dtype=torch.bfloat16, released=True)
    for path in (file, hf):
        found = halfbyte.verify(path)
        assert (found.ok, found.problems, found.notes) == (True, (), ())
        assert found.unread_tensors == ()
        opened = open_file(path)
        assert found.tensors == len(opened.tensors)
        assert found.bytes == sum(t.bytes for t in opened.tensors)
        assert found.architecture == ("gemma3" if name == "gemma3" else "gemma4")
        assert found.agreement is None
        assert str(found).endswith("verdict      ok")


def test_every_weight_that_is_no_number_is_found(packed: Path, tmp_path: Path) -> None:
    """A step in Q4_0, a row and block apart from the first; a norm; a step of Q6_K."""
    nan, inf = np.float16(np.nan).tobytes(), np.float32(-np.inf).tobytes()
    matrix = "blk.3.ffn_up.weight"  # rows of 256: 8 blocks of 18 bytes
    planted(packed, tmp_path / "a", matrix, 18 * (8 * 300 + 5), nan)
    planted(tmp_path / "a", tmp_path / "b", "output_norm.weight", 4 * 17, inf)
    planted(tmp_path / "b", tmp_path / "c", "token_embd.weight", 210 * 9 + 208, nan)
    problems = halfbyte.verify(tmp_path / "c").problems
    assert sorted(problems) == [
        f"tensor {matrix!r}: weight 300, 160 is nan; expected finite numbers",
        "tensor 'output_norm.weight': weight 0, 17 is -inf; expected finite numbers",
        "tensor 'token_embd.weight': weight 9, 0 is nan; expected finite numbers",
    ]


def test_scales_of_mobile_checkpoints_are_looked_at(tmp_path: Path) -> None:
    """By the loader, and as the numbers that they are."""
    reference = mobile.build("e2b")
    # What is never read is no number in these files.
    dead = {n: None for n, t in mobile.tensors(reference).items() if t.isnan().any()}
    whole = mobile.save(reference, tmp_path / "whole", "e2b", replace=dead)
    assert halfbyte.verify(whole).problems == ()
    name = mobile.ROOT + "layers.2.mlp.up_proj.weight_scale"
    scales = mobile.tensors(reference)[name].clone()
    scales[3] = torch.nan
    changed = {**dead, name: scales}
    wrong = mobile.save(reference, tmp_path / "wrong", "e2b", replace=changed)
    loader, contents = halfbyte.verify(wrong).problems
    assert name in loader
    assert "nan at index 3" in loader
    assert contents == f"tensor {name!r}: weight 3, 0 is nan; expected finite numbers"


def test_large_floats_are_no_problem(tmp_path: Path) -> None:
    """Their sum, which is looked at first, is infinite."""
    large = np.full((4, 64), 3e38, np.float32)
    assert halfbyte.verify(foreign(tmp_path / "m.gguf", "F32", large)).ok


def foreign(path: Path, kind: str, data: np.ndarray[Any, Any]) -> Path:
    """A file of one tensor, for an architecture that is not known here."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("one", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "empty", "wrong"),
    [
        ("Q4_0", 0, False),
        ("Q4_0", 1, True),  # its weights of 0 have the code 8
        ("Q5_0", 1, True),  # and its, 16
        ("BF16", 1, False),  # one of 32 MiB: rows of tokens that were never trained
        ("BF16", 2, True),
    ],
)
def test_holes_of_a_download(
    kind: str, empty: int, wrong: bool, tmp_path: Path
) -> None:
    row = (22 if kind == "Q5_0" else 18) * 64  # bytes
    raw = np.full(32 * MIB // row * row, 0x3C, np.uint8)
    raw[3 * MIB : (3 + empty) * MIB] = 0
    path = foreign(tmp_path / "m.gguf", kind, raw.reshape(-1, row))
    problems = halfbyte.verify(path).problems
    assert len(problems) == wrong
    if wrong:
        start = open_file(path).tensors[0].offset + 3 * MIB
        assert f"{empty} MiB of zero bytes, the first from byte {start} " in problems[0]


def test_tensors_that_are_missing_or_have_no_place(tmp_path: Path) -> None:
    model = tiny.build("e2b")
    gone = "blk.2.ffn_down.weight"
    path = tiny.save_gguf(model, tmp_path / "a.gguf", without_tensors=[gone])
    (problem,) = halfbyte.verify(path).problems
    assert gone in problem
    assert "MODEL_MISSING_TENSOR" in problem
    found = halfbyte.verify(tiny.save_gguf(model, tmp_path / "b.gguf", dead_kv=True))
    dead = [
        f"blk.{layer}.attn_{kind}.weight"
        for layer in range(8, 12)
        for kind in ("k", "v", "k_norm")
    ]
    assert found.ok
    assert sorted(found.unread_tensors) == sorted(dead)
    assert found.notes[-1].startswith(
        "12 tensors have no place in the model - there are"
    )


def test_copies_of_tied_heads_have_no_place_and_encoders_do_not_count(
    tmp_path: Path,
) -> None:
    tiny.save_hf(tiny.build("e2b"), tmp_path, released=True, lm_head=True)
    assert halfbyte.verify(tmp_path).unread_tensors == ("lm_head.weight",)
    loaded = halfbyte.load(tmp_path).unread_tensors
    assert any("vision_tower" in name for name in loaded)


def test_what_cannot_be_run_is_checked_all_the_same(tmp_path: Path) -> None:
    found = halfbyte.verify(
        foreign(tmp_path / "m.gguf", "F32", np.ones((2, 32), "<f4"))
    )
    assert found.ok
    assert found.architecture is None
    (note,) = found.notes
    assert "not checked as a model" in note
    assert "llama" in note


def test_the_hash_comes_first(packed: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    found = halfbyte.verify(packed, sha256=digest.upper())
    assert found.ok
    assert found.identity.sha256 == digest
    wrong = "0" * 64
    found = halfbyte.verify(packed, sha256=wrong)
    assert found.problems == (f"sha256: found {digest}; expected {wrong}",)
    assert (found.tensors, found.architecture) == (0, None)  # nothing else was done
    (tmp_path / "junk.gguf").write_bytes(b"GGUF of nothing")
    assert not halfbyte.verify(tmp_path / "junk.gguf", sha256=wrong).ok  # not opened
    with pytest.raises(halfbyte.FormatError):
        halfbyte.verify(tmp_path / "junk.gguf")
    with pytest.raises(halfbyte.ArgumentError, match="64 hexadecimal digits"):
        halfbyte.verify(packed, sha256="abc")
    with pytest.raises(halfbyte.ArgumentError, match="one file"):
        halfbyte.verify(tmp_path, sha256=wrong)


def test_the_report_names_published_files(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, size = (
        hashlib.sha256(packed.read_bytes()).hexdigest(),
        packed.stat().st_size,
    )
    told = {
        None: "as large as us/model: m, of which no hash is known",
        "0" * 64: f"sha256 {digest}",
        digest: "us/model: m, by its SHA-256",
    }
    for sha256, words in told.items():
        entry = identity.KnownFile("official", "us/model", "m", size, sha256)
        monkeypatch.setattr(identity, "_known_files", lambda known=entry: (known,))
        assert f"identity     {words}\n" in str(halfbyte.verify(packed))


# --- Two models --------------------------------------------------------------------


def test_a_model_agrees_with_itself(packed: Path) -> None:
    found = halfbyte.verify(packed, against=packed, text=TEXT, greedy=9)
    apart = found.agreement
    assert apart is not None
    assert (apart.kl_mean, apart.kl_max, apart.top1) == (0.0, 0.0, 1.0)
    assert (apart.greedy_equal, apart.greedy_tokens) == (9, 9)
    assert apart.perplexity == apart.reference_perplexity
    assert found.ok


@pytest.mark.parametrize("length", [40, 300])  # in one window of 256, and in two
def test_numbers_are_those_of_another_way(
    length: int, floats: Path, packed: Path
) -> None:
    """Of torch, from all logits at once."""
    models = [halfbyte.load(path, activations="f32") for path in (packed, floats)]
    ids = tiny.prompt(length)
    apart = compare(*models, ids, greedy=6)
    windows = [ids[:1] + ids[at : at + 255] for at in range(1, length, 255)]
    q, p = (
        torch.log_softmax(
            torch.from_numpy(
                np.concatenate([model.logits(window) for window in windows])
            ).double(),
            dim=-1,
        )
        for model in models
    )
    kl = (p.exp() * (p - q)).sum(-1).numpy()
    # Of sums over 512 terms in float64; the logits are the same bits.
    assert apart.kl_mean == pytest.approx(kl.mean(), rel=1e-12)
    assert apart.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-12)
    assert apart.kl_max == pytest.approx(kl.max(), rel=1e-12)
    assert apart.top1 == (p.argmax(-1) == q.argmax(-1)).double().mean()
    assert apart.positions == sum(map(len, windows))
    own, its = (model.perplexity(ids) for model in models)
    # log p in float32 there, of a logarithm of some 6: half an ulp is 2.4e-7.
    assert apart.perplexity == pytest.approx(own, rel=1e-6)
    assert apart.reference_perplexity == pytest.approx(its, rel=1e-6)
    assert 0 < apart.kl_mean < apart.kl_p99 <= apart.kl_max


def test_greedy_tokens_are_counted_up_to_the_first_that_differs(
    floats: Path, packed: Path
) -> None:
    models = [halfbyte.load(path) for path in (packed, floats)]
    ids = tiny.prompt(20)
    chosen = []
    for model in models:
        written = list(ids)
        for _ in range(40):
            written.append(int(model.logits(written, last=True).argmax()))
        chosen.append(written[len(ids) :])
    equal = next(i for i in range(40) if chosen[0][i] != chosen[1][i])
    for count in (equal, equal + 1, 40):
        apart = compare(*models, ids, greedy=count)
        assert apart.greedy_equal == equal
        assert apart.greedy_tokens == count


def test_the_context_bounds_what_is_generated(floats: Path) -> None:
    model = halfbyte.load(floats, context=50)
    apart = compare(model, model, tiny.prompt(120), greedy=100)
    # 119 tokens behind the first, in windows of 49 and that one again.
    assert (apart.positions, apart.greedy_tokens) == (120 + 2, 50 - 32)


def test_limits_decide(floats: Path, tmp_path: Path) -> None:
    other = tiny.build("e2b", seed=1, wide=True)
    other_path = tiny.save_gguf(other, tmp_path / "other.gguf")
    found = halfbyte.verify(floats, against=other_path, greedy=0)
    assert not found.ok
    kl, top1 = found.problems
    assert found.agreement is not None
    assert kl.startswith(f"divergence: found {found.agreement.kl_mean:.3g}; expected")
    assert top1.startswith("likeliest: found")
    limits = {"max_kl": found.agreement.kl_mean, "min_top1": found.agreement.top1}
    assert halfbyte.verify(floats, against=other_path, greedy=0, **limits).ok


def test_a_wrong_file_is_not_compared(packed: Path, tmp_path: Path) -> None:
    nan = np.float32(np.nan).tobytes()
    path = planted(packed, tmp_path / "m.gguf", "output_norm.weight", 0, nan)
    found = halfbyte.verify(path, against=packed)
    assert not found.ok
    assert found.agreement is None
    assert found.notes[-1].startswith("not compared")


def test_what_is_no_number_is_within_no_limit(packed: Path, tmp_path: Path) -> None:
    nan = np.float32(np.nan).tobytes()
    path = planted(packed, tmp_path / "m.gguf", "output_norm.weight", 0, nan)
    found = halfbyte.verify(packed, against=path, greedy=0)
    assert found.agreement is not None
    assert np.isnan(found.agreement.kl_mean)
    assert found.problems[0].startswith("divergence: found nan")


def test_a_perplexity_beyond_all_floats_is_infinite(tmp_path: Path) -> None:
    good = tiny.save_gguf(tiny.build("gemma3"), tmp_path / "good.gguf")
    huge = np.float32(1e30).tobytes()
    bad = planted(good, tmp_path / "bad.gguf", "output_norm.weight", 0, huge)
    found = halfbyte.verify(bad, against=good, text=TEXT, greedy=0)
    assert not found.ok
    assert found.agreement is not None
    assert found.agreement.perplexity == np.inf
    assert np.isfinite(found.agreement.reference_perplexity)
    assert "perplexity inf" in str(found)


def other_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the letters o and e change places."""
    tokens, *rest = tiny.vocabulary()
    swapped = list(tokens)
    a, b = tokens.index("e"), tokens.index("o")
    swapped[a], swapped[b] = "o", "e"
    monkeypatch.setattr(tiny, "vocabulary", lambda: (swapped, *rest))


def test_tokenizers_come_first(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build("e2b", wide=True)
    without = tiny.save_gguf(model, tmp_path / "without.gguf", tokenizer=False)
    for pair in ((floats, without), (without, floats)):  # that of the other will do
        found = halfbyte.verify(pair[0], against=pair[1], text=TEXT, greedy=0)
        assert found.ok
        assert found.agreement is not None
    with pytest.raises(halfbyte.ModelError, match="tokenizer"):
        halfbyte.verify(without, against=without)
    with monkeypatch.context() as patch:
        other_vocabulary(patch)
        other = tiny.save_gguf(model, tmp_path / "other.gguf")
    found = halfbyte.verify(floats, against=other, text="one")
    assert found.problems[0].startswith("tokenizer: found other tokens")
    monkeypatch.setattr(tiny, "VOCAB", 480)
    small = tiny.save_gguf(
        tiny.build("e2b", wide=True), tmp_path / "small.gguf", tokenizer=False
    )
    found = halfbyte.verify(floats, against=small, text="one")
    assert found.problems == ("vocabulary: found 512 tokens; expected 480",)


def test_options(floats: Path) -> None:
    with pytest.raises(halfbyte.ArgumentError, match="greedy"):
        halfbyte.verify(floats, against=floats, greedy=-1)
    with pytest.raises(halfbyte.ArgumentError, match="text: no text to predict"):
        halfbyte.verify(floats, against=floats, text="")
    with pytest.raises(halfbyte.ModelError, match="steps of activations"):
        halfbyte.verify(floats, against=floats, activations="static")


def test_progress_tells_what_is_done(packed: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    halfbyte.verify(
        packed,
        against=packed,
        sha256=hashlib.sha256(packed.read_bytes()).hexdigest(),
        text=TEXT,
        progress=lambda *call: calls.append(call),
    )
    stages = list(dict.fromkeys(stage for stage, *_ in calls))
    assert stages == ["hashing", "reading", "loading", "comparing"]
    for stage in stages:
        own = [(done, total) for name, done, total in calls if name == stage]
        assert own[-1][0] == own[-1][1]


# --- The command -----------------------------------------------------------------------

NAMES = {"greedy": "-n"}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, 0),
        ({"against": "floats", "max_kl": 9.0, "min_top1": 0.0}, 0),
        ({"against": "floats", "max_kl": 0.0}, 3),
        ({"sha256": "0" * 64}, 3),
    ],
)
def test_the_command_says_what_the_function_finds(
    options: dict[str, Any], code: int, floats: Path, packed: Path
) -> None:
    options = {k: str(floats) if k == "against" else v for k, v in options.items()}
    if "against" in options:
        options["greedy"] = 4
    words = [
        word
        for key, value in options.items()
        for word in (NAMES.get(key, f"--{key.replace('_', '-')}"), str(value))
    ]
    line = [sys.executable, "-m", "halfbyte", "verify", str(packed), *words]
    want = halfbyte.verify(packed, **options)
    plain = subprocess.run(line, check=False, capture_output=True, text=True)
    assert (plain.stdout, plain.stderr) == (f"{want}\n", "")
    document = subprocess.run([*line, "--json"], check=False, capture_output=True)
    assert plain.returncode == document.returncode == code
    want_json = json.loads(json.dumps({"schema": 1} | want.to_dict()))
    assert json.loads(document.stdout) == want_json


@pytest.mark.parametrize(
    ("words", "code"), [((__file__,), 4), ((__file__, "--sha256", "0"), 2)]
)
def test_the_command_refuses_in_one_line(words: tuple[str, ...], code: int) -> None:
    line = [sys.executable, "-m", "halfbyte", "verify", *words]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
