# tests/python/test_convert.py
# SPDX-License-Identifier: Apache-2.0
"""Models in another format: what the files hold, and who reads them.

The oracles are the `gguf` package, which writes a file of the same weights and decodes
ours, and llama.cpp. What becomes of a file when something goes wrong is in
`test_draft.py`, and at the end of this file for the whole of a conversion.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import halfbyte
import ml_dtypes
import mobile
import numpy as np
import pytest
import tiny
import torch
from gguf import GGMLQuantizationType as Type
from halfbyte import conversion, draft
from halfbyte.conversion import gguf as container
from halfbyte.conversion import plan, stream
from halfbyte.conversion.vocabulary import vocabulary
from halfbyte.errors import (
    ArgumentError,
    ModelError,
    NumericalError,
    TruncatedFileError,
    UnsupportedError,
)
from halfbyte.transformers import gguf_tokenizer
from numpy.typing import NDArray
from test_memory import MIB, measured

TABLES = ("token_embd.weight", "per_layer_token_embd.weight")
TEXTS = ["the end", "  and\n\n<|turn>the thing", "é中😀\x00", "in ging " * 5, ""]
SMALL = 4096  # bytes of a piece, so that tiny models have many


def trained(model: Any, seed: int = 0) -> Any:
    """Put the matrices of a model on a lattice, as training leaves them."""
    twin = tiny.rounded(model)
    with torch.no_grad():
        for i, (name, tensor) in enumerate(twin.model.state_dict().items()):
            if tensor.ndim < 2 or "router" in name:
                continue
            rng = np.random.default_rng([seed, i])
            groups = tensor.numpy().reshape(-1, 32)
            steps = np.abs(groups).max(1) / 8 * rng.uniform(0.75, 1.2, len(groups))
            steps = steps.astype(np.float32)[:, np.newaxis]
            levels = np.clip(np.rint(groups / steps), -8, 7).astype(np.float32)
            rounded = (steps * levels).astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.copy_(torch.from_numpy(rounded).reshape(tensor.shape))
    return twin


Save = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Write a directory: ``saved("e2b", on=True)``; the same call gives the same one."""
    root = tmp_path_factory.mktemp("models")
    made: dict[Any, Path] = {}

    def make(name: str, *, on: bool = True, **options: Any) -> Path:
        key = (name, on, str(options))
        if key not in made:
            model = tiny.build(name, wide=True)
            model = trained(model) if on else tiny.rounded(model)
            options = {"dtype": torch.bfloat16} | options
            made[key] = tiny.save_hf(model, root / f"{name}-{len(made)}", **options)
        return made[key]

    return make


def blocks(path: Path) -> dict[str, tuple[Type, list[int], bytes]]:
    """Type, shape and bytes of each tensor, by the `gguf` package."""
    return {
        t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes())
        for t in gguf.GGUFReader(path).tensors
    }


def keys(path: Path) -> dict[str, Any]:
    """Metadata by the `gguf` package; arrays of equal numbers are one."""
    out = {}
    for name, field in gguf.GGUFReader(path).fields.items():
        value = field.contents()
        if isinstance(value, list) and "tokenizer" not in name and len(set(value)) == 1:
            value = value[0]
        out[name] = value
    return out


def bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


# ---- what is in a file


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_bf16_is_the_same_model(
    name: str, released: bool, saved: Save, tmp_path: Path
) -> None:
    """To the last bit of the logits, with what the released checkpoints carry besides."""
    folder = saved(name, on=False, released=released, lm_head=True, dead_kv=True)
    out = tmp_path / "out.gguf"
    halfbyte.convert(folder, out, format="bf16")
    ids = tiny.prompt()
    np.testing.assert_array_equal(
        halfbyte.load(out).logits(ids), halfbyte.load(folder).logits(ids)
    )


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_file_is_what_the_gguf_package_makes(
    name: str, saved: Save, tmp_path: Path
) -> None:
    """Off the lattice: names, shapes, types, keys and the bytes of Q4_0, all of them."""
    model = tiny.rounded(tiny.build(name, wide=True))
    want = tiny.save_gguf(model, tmp_path / "want.gguf", types=tiny.official_type)
    out = tmp_path / "out.gguf"
    report = halfbyte.convert(saved(name, on=False), out)
    ours, theirs = blocks(out), blocks(want)
    assert ours.keys() == theirs.keys() == {tensor.name for tensor in report.tensors}
    for tensor, (kind, shape, data) in theirs.items():
        assert ours[tensor][:2] == (kind, shape), tensor
        # Q6_K is searched for here, by `test_formats.py`'s oracle; here it is not.
        if kind != Type.Q6_K:
            assert ours[tensor][2] == data, tensor
    found = keys(out)
    for key, value in keys(want).items():
        # Scores are for nobody beside merges; unused tokens are not told from others.
        if not key.startswith(
            ("GGUF.", "tokenizer.ggml.scores", "tokenizer.ggml.token_t")
        ):
            assert found[key] == value, key
    assert found["general.file_type"] == 2
    (attention,) = (role for role in report.roles if role.role == "attention")
    assert attention.share("off") == 1


@pytest.mark.parametrize("name", tiny.NAMES)
def test_the_lattice_is_kept(name: str, saved: Save, tmp_path: Path) -> None:
    """Every group, embeddings too; what the report counts is what the file holds."""
    out = tmp_path / "out.gguf"
    report = halfbyte.convert(saved(name), out)
    values, types = tiny.decoded_tensors(out)
    source = {
        tiny.gguf_name(key): value.numpy()
        for key, value in tiny.weights(trained(tiny.build(name, wide=True))).items()
        if "rotary" not in key and "embed_scale" not in key
    }
    packed = 0
    for tensor in report.tensors:
        assert tensor.kept is not None
        assert tensor.kept.off == 0, tensor
        if tensor.type != "Q4_0":
            continue
        packed += 1
        same = bf16(values[tensor.name]) == source[tensor.name]
        exact = int(same.reshape(-1, 32).all(axis=1).sum())
        groups = same.size // 32
        # Ambiguous groups may be exact as well: they are counted apart.
        assert exact - tensor.kept.ambiguous <= tensor.kept.exact <= exact
        assert sum(tensor.kept) == groups
        assert tensor.kept.exact > 0.9 * groups
        # Where the step had to be rounded, a weight is the next bfloat16 number.
        pair = (bf16(values[tensor.name]), source[tensor.name])
        near, want = (np.abs(x).view(np.int32) >> 16 for x in pair)
        assert np.abs(near - want).max() <= 1
    assert all(types[table] == Type.Q4_0 for table in TABLES if table in types)
    assert packed == sum(kind == Type.Q4_0 for kind in types.values()) > 10


def test_tables_off_the_lattice_stay_finer(tmp_path: Path) -> None:
    """A table of which some rows are not on the lattice is not taken for one that is."""
    model = trained(tiny.build("e2b", wide=True))
    with torch.no_grad():
        model.model.embed_tokens.weight[::2] *= 1.1
    folder = tiny.save_hf(model, tmp_path / "model", dtype=torch.bfloat16)
    report = halfbyte.convert(folder, tmp_path / "out.gguf")
    types = {tensor.name: tensor.type for tensor in report.tensors}
    assert [types[table] for table in TABLES] == ["Q6_K", "Q4_0"]


@pytest.mark.parametrize("fmt", ["q4_0", "q8_0", "bf16"])
def test_types_of_each_format(fmt: str, saved: Save, tmp_path: Path) -> None:
    report = halfbyte.convert(saved("26b"), tmp_path / "26b.gguf", format=fmt)
    upper = fmt.upper()
    want = dict.fromkeys(["embedding", "attention", "MLP", "experts"], upper)
    want |= {"router": "F32", "norms and scalars": "F32"}
    assert {role.role: role.type for role in report.roles} == want
    report = halfbyte.convert(saved("e2b"), tmp_path / "e2b.gguf", format=fmt)
    found = {role.role: role.type for role in report.roles}
    assert found["PLE projection"] == ("BF16" if fmt == "bf16" else "F16")
    assert found["PLE table"] == found["PLE gate, projection"] == upper
    assert halfbyte.load(tmp_path / "e2b.gguf").config.num_layers == 12


def test_rows_of_no_whole_number_of_blocks(tmp_path: Path) -> None:
    """The 26B's routers and experts; here 48 columns, which only floats can hold."""
    model = tiny.rounded(tiny.build("gemma3"))
    for layer in model.model.layers:
        mlp = layer.mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight = torch.nn.Parameter(linear.weight[:48].clone())
        mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :48].clone())
    model.config.intermediate_size = 48
    folder = tiny.save_hf(model, tmp_path / "model", dtype=torch.bfloat16)
    report = halfbyte.convert(folder, tmp_path / "out.gguf", format="q8_0")
    types = {t.name: t.type for t in report.tensors}
    assert types["blk.0.ffn_down.weight"] == "BF16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    halfbyte.load(tmp_path / "out.gguf").logits(tiny.prompt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shards", [1, 3])
def test_sources_of_other_types(
    dtype: torch.dtype, shards: int, tmp_path: Path
) -> None:
    """The same bytes of the same numbers, in several files or one."""
    # float16 holds bfloat16 numbers of this size, but for the smallest.
    model = tiny.rounded(trained(tiny.build("e4b", wide=True)), torch.float16)
    model = tiny.rounded(model)
    folders = [
        tiny.save_hf(model, tmp_path / str(kind), dtype=kind, shards=count)
        for kind, count in ((torch.bfloat16, 1), (dtype, shards))
    ]
    for folder in folders:
        halfbyte.convert(folder, folder / "out.gguf")
    one, two = (blocks(folder / "out.gguf") for folder in folders)
    assert one == two
    weights = min(folders[1].glob("*.safetensors"))  # the first of its shards
    halfbyte.convert(weights, folders[1] / "named.gguf")
    assert blocks(folders[1] / "named.gguf") == two


def test_the_file_that_is_named_is_converted(tmp_path: Path) -> None:
    made = tiny.build("31b", wide=True)
    folder = tiny.save_hf(tiny.rounded(made), tmp_path / "made")
    other = tiny.save_hf(tiny.rounded(trained(made)), tmp_path / "trained")
    kept = (folder / "model.safetensors").rename(folder / "kept.safetensors")
    (other / "model.safetensors").rename(folder / "model.safetensors")
    halfbyte.convert(kept, tmp_path / "named.gguf")
    kept.rename(folder / "model.safetensors")
    halfbyte.convert(folder, tmp_path / "alone.gguf")
    assert blocks(tmp_path / "named.gguf") == blocks(tmp_path / "alone.gguf")


def test_float_files_become_the_same_files(saved: Save, tmp_path: Path) -> None:
    """GGUF to GGUF, a split one too, with the metadata as it was."""
    for name in ("e2b", "gemma3"):
        direct, detour = tmp_path / "direct.gguf", tmp_path / "bf16.gguf"
        halfbyte.convert(saved(name), direct)
        halfbyte.convert(saved(name), detour, format="bf16")
        halfbyte.convert(detour, tmp_path / "out.gguf")
        assert (tmp_path / "out.gguf").read_bytes() == direct.read_bytes()
    extra = {"note": "the file's own", "feed_forward_length": [512] * 7}
    odd = tiny.save_gguf(
        tiny.rounded(tiny.build("gemma3", wide=True)),
        tmp_path / "odd.gguf",
        extra=extra,
    )
    halfbyte.convert(odd, odd, format="q8_0")  # the source is the target
    assert keys(odd)["gemma3.note"] == "the file's own"
    assert keys(odd)["general.file_type"] == 7
    assert halfbyte.load(odd).config.layers[0].ffn_len == 512


# ---- the tokenizer and what else a file says


@pytest.mark.parametrize("name", ["e2b", "gemma3"])
def test_texts_become_the_same_tokens(name: str, saved: Save, tmp_path: Path) -> None:
    folder, out = saved(name), tmp_path / "out.gguf"
    halfbyte.convert(folder, out)
    ours = halfbyte.Tokenizer.from_gguf(out)
    theirs = halfbyte.Tokenizer.from_json(folder / "tokenizer.json")
    if name == "gemma3":  # scores merge in ways that the tiny list of merges lacks
        path = tiny.save_gguf(tiny.build(name), tmp_path / "scores.gguf")
        theirs = halfbyte.Tokenizer.from_gguf(path)
    rng = np.random.default_rng(0)
    letters = list("thendigraou \n<|>é中")
    texts = TEXTS + ["".join(rng.choice(letters, 40)) for _ in range(200)]
    for text in texts:
        for special in (False, True):
            assert ours.encode(text, special=special) == theirs.encode(
                text, special=special
            )
    tokens, types, _ = tiny.vocabulary()
    seen = keys(out)["tokenizer.ggml.token_type"]
    for token, kind, found in zip(tokens, types, seen, strict=True):
        # A tokenizer.json does not tell unused tokens from others.
        assert found == (1 if kind == 5 else kind), token
    model = keys(out)["tokenizer.ggml.model"]
    assert model == ("llama" if name == "gemma3" else "gemma4")


def test_the_vocabulary_of_gemma3(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, by way of a tokenizer.json as Transformers writes it."""
    file = halfbyte.open_gguf(demo_model)
    theirs = halfbyte.Tokenizer.from_gguf(demo_model)
    path = tmp_path / "tokenizer.json"
    path.write_text(gguf_tokenizer.fast_tokenizer(file, theirs)._tokenizer.to_str())
    found = vocabulary(
        tmp_path,
        halfbyte.Tokenizer.from_json(path),
        theirs.num_tokens,
        ranked=False,
        template="",
    )
    monkeypatch.setattr(tiny, "VOCAB", theirs.num_tokens)
    model = tiny.save_gguf(tiny.build("gemma3"), tmp_path / "m.gguf", tokenizer=False)
    opened = halfbyte.open_gguf(model)
    outputs = [plan.Output(t.name, t.type, t.shape, t.bytes) for t in opened.tensors]
    keys = container.copied(str(model)) | found
    layout = container.layout(keys, outputs)
    data = b"".join(
        opened.tensor_bytes(t.name).tobytes().ljust(-(-t.bytes // 32) * 32, b"\0")
        for t in opened.tensors
    )
    out = tmp_path / "out.gguf"
    out.write_bytes(layout.header + data)
    ours = halfbyte.Tokenizer.from_gguf(out)
    golden = Path(__file__).parents[1] / "golden" / "perplexity.txt"
    for text in (golden.read_text(), *TEXTS, "Café déjà vu — 123 😊\n\n\n<table>"):
        assert ours.encode(text) == theirs.encode(text)


def test_what_files_beside_the_weights_say(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}<|turn>{{ m['role'] }}"
    out = tmp_path / "out.gguf"
    cached = tmp_path / "models--owner--Model-12B" / "snapshots" / "0badcafe"
    folder = tiny.save_hf(tiny.build("12b", wide=True), cached, dtype=torch.bfloat16)
    generation = {
        "temperature": 0.75,
        "top_k": 64,
        "top_p": 0.95,
        "eos_token_id": [1, 6],
        "suppress_tokens": [300, 301],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "chat_template.jinja").write_text(template)
    halfbyte.convert(folder, out)
    found, want = halfbyte.load(out), halfbyte.load(folder)
    assert found.sampling == pytest.approx(want.sampling)
    assert found._core.chat_template == template
    assert found.tokenizer._core.eog == want.tokenizer._core.eog
    written = keys(out)
    assert written["general.name"] == "Model-12B"
    assert written["general.sampling.top_k"] == 64
    assert written["tokenizer.ggml.suppress_tokens"] == [300, 301]
    assert written["tokenizer.ggml.eot_token_id"] == 6


def test_vocabularies_of_another_length(tmp_path: Path) -> None:
    """Gemma 3's knows a token without a row; rows without a token get one."""
    folder = tiny.save_hf(
        tiny.build("gemma3", wide=True), tmp_path / "model", dtype=torch.bfloat16
    )
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(
        {"id": tiny.VOCAB, "content": "<image_soft_token>", "special": True}
    )
    path.write_text(json.dumps(content))
    halfbyte.convert(folder, tmp_path / "out.gguf")
    assert len(keys(tmp_path / "out.gguf")["tokenizer.ggml.tokens"]) == tiny.VOCAB
    vocab = content["model"]["vocab"]
    gone = [text for text, token in vocab.items() if token >= tiny.VOCAB - 2]
    content["added_tokens"].pop()
    for text in gone:
        del vocab[text]
    path.write_text(json.dumps(content))
    halfbyte.convert(folder, tmp_path / "out.gguf")
    tokens = keys(tmp_path / "out.gguf")["tokenizer.ggml.tokens"]
    assert tokens[-2:] == ["[PAD510]", "[PAD511]"]


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    folder = tiny.save_hf(
        tiny.build("gemma3", wide=True),
        tmp_path / "model",
        dtype=torch.bfloat16,
        tokenizer=False,
    )
    halfbyte.convert(folder, tmp_path / "out.gguf")
    assert not halfbyte.load(tmp_path / "out.gguf").has_tokenizer


@pytest.mark.parametrize("factor", [None, 8.0])
def test_gemma3_with_scaled_positions(factor: float | None, tmp_path: Path) -> None:
    model = tiny.build("gemma3", wide=True, rope_factor=factor)
    folder = tiny.save_hf(model, tmp_path / "model", dtype=torch.bfloat16)
    halfbyte.convert(folder, tmp_path / "out.gguf", format="bf16")
    ids = tiny.prompt()
    np.testing.assert_array_equal(
        halfbyte.load(tmp_path / "out.gguf").logits(ids),
        halfbyte.load(folder).logits(ids),
    )


# ---- llama.cpp

LLAMA = """
import json, sys
import llama_cpp
# Its AMX kernels fault on hosts that name AMX without granting it to a process.
defaults = llama_cpp.llama_cpp.llama_model_default_params
params = defaults()
params.use_extra_bufts = False
llama_cpp.llama_cpp.llama_model_default_params = lambda: params
ids, texts, *paths = map(json.loads, sys.argv[1:])
f32 = llama_cpp.GGML_TYPE_F32
for path in paths:
    model = llama_cpp.Llama(
        path, n_ctx=128, n_threads=1, n_threads_batch=1, verbose=False, swa_full=True,
        type_k=f32, type_v=f32, flash_attn=False,
    )
    tokens = []
    for token in model.generate(ids, temp=0.0):
        tokens.append(token)
        if len(tokens) == 24:
            break
    words = [model.tokenize(t.encode(), add_bos=False, special=False) for t in texts]
    print(json.dumps([tokens, words]))
"""


def llama(*paths: Path) -> list[Any]:
    """Greedy tokens after a prompt, and tokens of texts, by llama.cpp, of each file."""
    if find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is absent")
    words = map(json.dumps, (tiny.prompt(20), TEXTS[:2], *map(str, paths)))
    done = subprocess.run(
        [sys.executable, "-c", LLAMA, *words],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("fmt", ["bf16", "q4_0"])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_llama_cpp_says_the_same(
    name: str,
    fmt: str,
    saved: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of our file and of the one that the `gguf` package makes of the same weights."""
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    halfbyte.convert(saved(name), ours, format=fmt)
    types = {tensor: kind for tensor, (kind, _, _) in blocks(ours).items()}
    # The package's own quantizer does not find the lattice.
    monkeypatch.setattr(tiny, "encode", recovered)
    model = trained(tiny.build(name, wide=True))
    tiny.save_gguf(model, theirs, types=types.__getitem__)
    (tokens, words), reference = llama(ours, theirs)
    assert [tokens, words] == reference
    assert len(tokens) == 24
    assert all(words)


def recovered(values: NDArray[np.float32], kind: Type, seed: int = 0) -> Any:  # noqa: ARG001
    """Encode as `tiny.encode` does, but Q4_0 by the lattice."""
    if kind != Type.Q4_0:
        return np.asarray(gguf.quantize(values, kind))
    rows = values.reshape(-1, values.shape[-1])
    packed = halfbyte.lattice.recover(rows).weight.data
    return packed.reshape(*values.shape[:-1], -1)


# ---- how it runs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut tiny models into many pieces, too."""
    monkeypatch.setattr(stream, "PIECE_BYTES", SMALL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_bytes(folders: list[Path], tmp_path: Path, threads: int) -> None:
    """Convert in one thread and in others, with the target of the test."""
    want, out = tmp_path / "want.gguf", tmp_path / "out.gguf"
    for folder in folders:
        with halfbyte.use_target(halfbyte.cpu_targets()[0]):
            first = halfbyte.convert(folder, want, threads=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream, "PIECE_BYTES", SMALL * threads)
            again = halfbyte.convert(folder, out, threads=threads)
        assert out.read_bytes() == want.read_bytes()
        assert again.tensors == first.tensors


@pytest.mark.usefixtures("target")
def test_the_bytes_depend_on_no_target(saved: Save, tmp_path: Path) -> None:
    """On the lattice and off it."""
    same_bytes([saved("26b"), saved("12b", on=False)], tmp_path, threads=2)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_the_bytes_depend_on_no_threads(
    threads: int, saved: Save, tmp_path: Path
) -> None:
    same_bytes([saved("e2b"), saved("26b", on=False)], tmp_path, threads)


def test_what_it_says(saved: Save, tmp_path: Path) -> None:
    out, calls = tmp_path / "out.gguf", list[tuple[int, int]]()
    dry = halfbyte.convert(saved("e2b"), out, dry_run=True)
    assert names(tmp_path) == []
    assert not dry.written
    assert "not written" in repr(dry)
    report = halfbyte.convert(
        saved("e2b"), out, progress=lambda *call: calls.append(call)
    )
    assert report.bytes == dry.bytes == out.stat().st_size
    assert [t.name for t in dry.tensors] == [t.name for t in report.tensors]
    assert report.left_out == ()
    done, total = zip(*calls, strict=True)
    assert done == tuple(sorted(done))
    assert {done[-1]} == set(total)
    assert f"{report.bytes:,} bytes" in repr(report)
    lines = str(report).splitlines()
    assert len(lines) == 2 + len(report.roles)
    assert lines[1].split() == [
        "type",
        "tensors",
        "bytes",
        "exact",
        "levels",
        "ambiguous",
        "off",
    ]
    assert report._repr_html_().count("<tr>") == 1 + len(report.roles)
    json.dumps(report.to_dict())
    # What is not everything is not called so.
    almost = conversion.RoleReport("", "", 1, 1, stream.Tally(exact=10**9, off=1))
    assert almost.share("off") == pytest.approx(1e-9)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Three times 100 MB of weights, in 4 MiB pieces: no tensor is in memory as a whole."""
    model = tiny.build("gemma3", wide=True)
    wide = 200_000
    for layer in model.model.layers[:1]:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight = torch.nn.Parameter(torch.full((wide, 256), 0.5))
        layer.mlp.down_proj.weight = torch.nn.Parameter(torch.full((256, wide), 0.5))
    model.model.layers = model.model.layers[:1]
    model.config.update({"num_hidden_layers": 1, "layer_types": [tiny.S]})
    model.config.intermediate_size = wide
    folder = tiny.save_hf(model, tmp_path / "model", dtype=torch.bfloat16)
    facts = measured(
        """
import halfbyte.conversion
before = kept("VmHWM")
report = halfbyte.convert(path, path + ".gguf", threads=2)
facts |= {"grown": kept("VmHWM") - before, "bytes": report.bytes}
""",
        folder,
    )
    source = (folder / "model.safetensors").stat().st_size
    assert source > 300e6
    assert facts["bytes"] > 85e6
    # Two pieces a thread with what they become, and the vocabulary's few kilobytes.
    assert facts["grown"] < 60 * MIB


# ---- what is refused


def test_sources_that_are_packed_already(saved: Save, tmp_path: Path) -> None:
    out, packed = tmp_path / "out.gguf", tmp_path / "packed.gguf"
    halfbyte.convert(saved("e2b"), packed)
    with pytest.raises(UnsupportedError, match=r"'token_embd.weight': .* found Q4_0"):
        halfbyte.convert(packed, out)
    folder = mobile.save(mobile.build("e2b"), tmp_path / "mobile", "e2b")
    with pytest.raises(UnsupportedError, match="is packed already"):
        halfbyte.convert(folder, out)
    assert names(tmp_path) == ["mobile", "packed.gguf"]


@pytest.mark.parametrize(
    ("value", "fmt", "name", "message"),
    [
        (float("nan"), "q4_0", "layers.1.mlp.up_proj", "found nan in row 70, column 9"),
        (float("inf"), "q8_0", "layers.1.mlp.up_proj", "found inf in row 70, column 9"),
        (float("inf"), "bf16", "layers.1.mlp.up_proj", None),
        (float("-inf"), "q4_0", "embed_tokens", "found -inf in row 70"),
        (1e5, "q4_0", "per_layer_model_projection", "up to 65504"),
    ],
)
@pytest.mark.usefixtures("small")
def test_numbers_that_cannot_be_packed(
    value: float, fmt: str, name: str, message: str | None, tmp_path: Path
) -> None:
    model = tiny.build("e2b", wide=True)
    with torch.no_grad():
        model.get_submodule(f"model.{name}").weight[70, 9] = value
    folder = tiny.save_hf(model, tmp_path / "model", dtype=torch.bfloat16)
    out = tmp_path / "out.gguf"
    if message is None:  # what is copied is not judged
        halfbyte.convert(folder, out, format=fmt)
        return
    with pytest.raises(NumericalError, match=f"'model.{name}.weight': .*{message}"):
        halfbyte.convert(folder, out, format=fmt)
    assert names(tmp_path) == ["model"]


def test_damaged_sources(tmp_path: Path) -> None:
    folder = tiny.save_hf(
        tiny.build("e2b", wide=True), tmp_path / "model", dtype=torch.bfloat16
    )
    out = tmp_path / "out.gguf"
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(TruncatedFileError):
        halfbyte.convert(folder, out)
    weights.write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="embed_tokens"):
        halfbyte.convert(folder, out)
    with pytest.raises(FileNotFoundError):
        halfbyte.convert(tmp_path / "gone", out)
    assert names(tmp_path) == ["model"]


@pytest.mark.usefixtures("small")
def test_a_source_that_is_cut_off_meanwhile(tmp_path: Path) -> None:
    folder = tiny.save_hf(
        tiny.build("e2b", wide=True), tmp_path / "model", dtype=torch.bfloat16
    )
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")

    def cut(_done: int, _total: int) -> None:
        os.truncate(folder / "model.safetensors", 1_000_000)

    with pytest.raises(halfbyte.FileChangedError):
        halfbyte.convert(folder, out, progress=cut)
    assert names(tmp_path) == ["model", "out.gguf"]
    assert out.read_bytes() == b"old"


def test_options_that_are_none(saved: Save, tmp_path: Path) -> None:
    for option, value in (("format", "q5_k"), ("to", "onnx"), ("quantizer", "luck")):
        with pytest.raises(ArgumentError, match=f"{option}: expected one of .*{value}"):
            halfbyte.convert(saved("e2b"), tmp_path / "out", **{option: value})
    with pytest.raises(ArgumentError, match="threads: expected 1 to"):
        halfbyte.convert(saved("e2b"), tmp_path / "out", threads=0)
    with pytest.raises(IsADirectoryError):
        halfbyte.convert(saved("e2b"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_pre_attn_scalar": 100}, "query_pre_attn_scalar: expected 32"),
        ({"per_layer_config": {"05": {"head_dim": 16}}}, "expected one head_dim"),
    ],
)
def test_models_that_gguf_has_no_words_for(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = tiny.build("gemma3", wide=True)
    if "per_layer_config" in change:
        attention = model.model.layers[5].self_attn  # the full one
        for kind in "qkv":
            linear = getattr(attention, f"{kind}_proj")
            half = linear.weight[: len(linear.weight) // 2].clone()
            linear.weight = torch.nn.Parameter(half)
        o = attention.o_proj.weight
        attention.o_proj.weight = torch.nn.Parameter(o[:, : o.shape[1] // 2].clone())
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight = torch.nn.Parameter(norm.weight[:16].clone())
    folder = tiny.save_hf(model, tmp_path / "model", dtype=torch.bfloat16)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    halfbyte.load(folder)
    with pytest.raises(UnsupportedError, match=message):
        halfbyte.convert(folder, tmp_path / "out.gguf")


# ---- interruptions


def interrupted(folder: Path, out: Path, pieces: int) -> None:
    """Convert until so many pieces are done, and press Ctrl-C."""
    left = iter(range(pieces))

    def press(_done: int, _total: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halfbyte.convert(folder, out, threads=2, progress=press)


@pytest.mark.usefixtures("small")
def test_an_interrupted_conversion_goes_on(saved: Save, tmp_path: Path) -> None:
    want, out = tmp_path / "want.gguf", tmp_path / "here" / "out.gguf"
    out.parent.mkdir()
    first = halfbyte.convert(saved("e4b"), want)
    interrupted(saved("e4b"), out, 300)
    (part,) = out.parent.iterdir()
    assert part.name.endswith(".halfbyte-part")
    report = halfbyte.convert(saved("e4b"), out)
    assert out.read_bytes() == want.read_bytes()
    assert report.tensors == first.tensors
    assert 0 < report.resumed_bytes < report.bytes
    assert first.resumed_bytes == 0
    assert names(out.parent) == ["out.gguf"]


class Logged:
    """A source and its encoder, which take their time and say when."""

    name, shape, row_bytes = "a", (30, SMALL // 2), SMALL

    def __init__(self) -> None:
        self.log: list[str] = []

    def read(self, begin: int, count: int, out: plan.U8Array) -> plan.Rows:
        self.log.append("read")
        return plan.Rows("a", out[:SMALL], "bf16", (count, SMALL // 2), begin)

    def __call__(self, rows: plan.Rows) -> tuple[tuple[plan.U8Array, ...], plan.Tally]:
        self.log.append("begin")
        time.sleep(0.01)  # long enough for others to read
        self.log.append("end")
        return (rows.data.copy(),), plan.Tally()

    def most(self, since: str) -> int:
        """How many pieces are between an event and their end, at most."""
        steps = [(event == since) - (event == "end") for event in self.log]
        return int(np.cumsum(steps).max())


@pytest.mark.usefixtures("small")
def test_the_disk_is_read_while_others_compute(tmp_path: Path) -> None:
    """As many compute as there are threads, and as many again wait with what they read."""
    it = Logged()
    output = plan.Output("a", "BF16", it.shape, 30 * SMALL)
    layout = plan.Layout(b"", (0,), output.bytes)
    made = plan.Plan((plan.Job("", it, it, (output,)),), layout, Path.stat)
    with draft.Draft(tmp_path / "out", layout.size) as target:
        stream.stream(made, target, 2, None)
    assert it.most("begin") == 2
    assert it.most("read") == 4


@pytest.mark.usefixtures("small")
def test_threads_end_before_the_file_is_closed(
    saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would write to a descriptor that may be another file's by then."""
    alive, real = [], draft.Draft._close

    def close(self: draft.Draft) -> None:
        alive.append([t.name for t in threading.enumerate() if "convert" in t.name])
        real(self)

    monkeypatch.setattr(draft.Draft, "_close", close)
    interrupted(saved("e4b"), tmp_path / "out.gguf", 10)
    assert alive == [[]]


@pytest.mark.usefixtures("small")
def test_what_was_written_is_checked(saved: Save, tmp_path: Path) -> None:
    """A byte that a crash of the machine lost, and records that make no sense."""
    want, out = tmp_path / "want.gguf", tmp_path / "here" / "out.gguf"
    out.parent.mkdir()
    size = halfbyte.convert(saved("e4b"), want).bytes
    interrupted(saved("e4b"), out, 300)
    (part,) = out.parent.iterdir()
    with part.open("r+b") as file:
        for at in range(40_000, size, 40_000):
            file.seek(at)
            file.write(b"\xa5" * 100)
        file.seek(0, os.SEEK_END)
        file.write(b"1 2 3\nnot numbers at all 0 0\n999999 1 1 1 1 1\n")
    report = halfbyte.convert(saved("e4b"), out)
    assert out.read_bytes() == want.read_bytes()
    assert report.resumed_bytes > 0


@pytest.mark.usefixtures("small")
def test_a_conversion_of_something_else_starts_anew(tmp_path: Path) -> None:
    out, folder = tmp_path / "out.gguf", tmp_path / "model"
    for change in ("format", "source"):
        tiny.save_hf(tiny.build("12b", wide=True), folder, dtype=torch.bfloat16)
        interrupted(folder, out, 100)
        options = {}
        if change == "format":
            options["format"] = "q8_0"
        else:
            os.utime(folder / "model.safetensors")
        assert halfbyte.convert(folder, out, **options).resumed_bytes == 0
        assert names(tmp_path) == ["model", "out.gguf"]


KILLED = """
import sys
import halfbyte
from halfbyte.conversion import stream
stream.PIECE_BYTES = int(sys.argv[3])
print("begun", flush=True)
while True:
    halfbyte.convert(sys.argv[1], sys.argv[2], threads=2)
"""


def test_ten_kills(saved: Save, tmp_path: Path) -> None:
    """The old file whole or the new one, and the last attempt goes on."""
    out, want = tmp_path / "out.gguf", tmp_path / "want.gguf"
    halfbyte.convert(saved("e2b"), want)
    out.write_bytes(b"old")
    for i in range(10):
        line = [sys.executable, "-c", KILLED, saved("e2b"), out, SMALL]
        process = subprocess.Popen([*map(str, line)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as told:
            assert told.readline() == b"begun\n"
        time.sleep(0.02 + 0.11 * i)
        process.kill()
        process.wait()
        assert out.read_bytes() in (b"old", want.read_bytes())
        assert len(names(tmp_path)) <= 3
    halfbyte.convert(saved("e2b"), out)
    assert out.read_bytes() == want.read_bytes()
    assert names(tmp_path) == ["out.gguf", "want.gguf"]


# ---- the command


CONVERT = (sys.executable, "-m", "halfbyte", "convert")


def command(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [*CONVERT, *map(str, args)]
    return subprocess.run(
        line, check=False, capture_output=True, text=True, timeout=300, **options
    )


def test_the_command(saved: Save, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = command(saved("e2b"), out, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith(" bytes, nothing written")
    assert names(tmp_path) == []
    done = command(saved("e2b"), out, "--json", "--threads", 1)
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert told["schema"] == 1
    assert told["bytes"] == out.stat().st_size
    assert told["tensors"][0]["kept"]["off"] == 0
    done = command(saved("e2b"), out, "--format", "q8_0")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows, last = done.stdout.splitlines()
    assert head.split()[:3] == ["type", "tensors", "bytes"]
    assert len(rows) == 7
    assert " written in " in last


def test_the_command_on_a_full_disk(saved: Save, tmp_path: Path) -> None:
    """A limit on files as small as half of the target: one line, nothing left."""
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    size = halfbyte.convert(saved("e2b"), out, dry_run=True).bytes

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    done = command(saved("e2b"), out, preexec_fn=limit)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        f"halfbyte: {out}: File too large: 0 of {size:,} bytes were written"
    )
    assert out.read_bytes() == b"old"
    assert names(tmp_path) == ["out.gguf"]


# Mounts a disk of $1 bytes at $2, for itself alone; has an old file $3 there, runs what
# follows, and says which files there are then.
ON_A_DISK = """
mount -t tmpfs -o "size=$1" disk "$2" || exit
mkdir -p "$(dirname "$3")"
printf old > "$3"
"${@:4}"
status=$?
find "$2" -type f -printf "%P %s\\n" | sort
exit $status
"""


def on_a_disk(
    disk: Path, size: object, old: Path, *command: object
) -> subprocess.CompletedProcess[str]:
    line = ["unshare", "-rm", "bash", "-c", ON_A_DISK, "", size, disk, old, *command]
    return subprocess.run(
        [*map(str, line)], check=False, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Make a folder, if this user may mount something on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = on_a_disk(folder, "1m", folder / "a", "true")
    except FileNotFoundError as error:
        pytest.skip(f"no command for mounts of one's own: {error}")
    if done.returncode:
        pytest.skip(f"this system refuses mounts of one's own: {done.stderr}")
    assert done.stdout == "a 3\n"
    return folder


@pytest.mark.parametrize("to", ["gguf", "safetensors"])
def test_a_disk_that_is_full(to: str, saved: Save, disk: Path) -> None:
    """A real one of half the size: one line, nothing left, the old file whole."""
    out, options = disk / "out", {"format": "bf16", "to": to}
    size = halfbyte.convert(saved("e2b"), out, dry_run=True, **options).bytes
    tensors = conversion.tensor_file(out, to)
    old = tensors if to == "gguf" else out / "tokenizer.json"
    words = ("--to", to, "--format", "bf16")
    done = on_a_disk(disk, size // 2, old, *CONVERT, saved("e2b"), out, *words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    head, free = line.split(" bytes were written, ")
    assert head == f"halfbyte: {tensors}: No space left on device: 0 of {size:,}"
    assert 0 < int(free.removesuffix(" are free").replace(",", "")) < size
    assert done.stdout == f"{old.relative_to(disk)} 3\n"


def test_a_disk_that_is_full_after_the_tensors(saved: Save, disk: Path) -> None:
    """What is there then is taken for no model, and no file is half there."""
    out = disk / "out"
    options = {"format": "bf16", "to": "safetensors", "dry_run": True}
    size = halfbyte.convert(saved("e2b"), out, **options).bytes
    words = ("--to", "safetensors", "--format", "bf16")
    old = out / "tokenizer.json"
    room = size + 2 * resource.getpagesize()
    done = on_a_disk(disk, room, old, *CONVERT, saved("e2b"), out, *words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"halfbyte: {out / 'tokenizer.json'}: No space left")
    assert done.stdout == f"out/model.safetensors {size}\nout/tokenizer.json 3\n"


def test_ctrl_c_and_what_a_kill_leaves(saved: Save, tmp_path: Path) -> None:
    """It ends soon, says what to do, and mentions what others have left."""
    out, other = tmp_path / "out.gguf", tmp_path / "other.gguf"
    for target, how in ((other, signal.SIGKILL), (out, signal.SIGINT)):
        line = [sys.executable, "-c", STOPPED, "200", str(saved("e2b")), str(target)]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(how)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.decode() == "interrupted: the same command goes on from here\n"
    assert [found.target for found in draft.leftovers(tmp_path)] == [
        "other.gguf",
        "out.gguf",
    ]
    line = [sys.executable, "-c", STOPPED, "-1", str(saved("e2b")), str(out), "--json"]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["resumed_bytes"] > 0
    (mention,) = done.stderr.splitlines()
    assert mention.startswith(".other.gguf.")
    assert mention.endswith(
        "left by a conversion of other.gguf that was killed; --clean deletes it"
    )
    done = command(saved("e2b"), out, "--clean", "--json")
    assert done.stderr.startswith("deleted .other.gguf.")
    assert names(tmp_path) == ["out.gguf"]
    assert command(saved("e2b"), out, "--quiet").stderr == ""


STOPPED = """
import sys, time
from halfbyte import cli
from halfbyte.conversion import stream
stream.PIECE_BYTES = 4096
real = stream._record
count = iter(range(1 << 30))
def record(done):
    if next(count) == int(sys.argv[1]):
        print("begun", flush=True)
        time.sleep(60)
    return real(done)
stream._record = record
sys.exit(cli.main(["convert", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("target", ["gguf", "safetensors"])
def test_a_head_of_its_own_is_kept(target: str, tmp_path: Path) -> None:
    model = tiny.build("e2b")
    model.config.tie_word_embeddings = False
    torch.manual_seed(5)
    model.lm_head.weight = torch.nn.Parameter(0.05 * torch.randn(512, 64))
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.bfloat16())  # which then loses nothing
    source = tmp_path / "source"
    model.save_pretrained(source)
    out = tmp_path / "out.gguf" if target == "gguf" else tmp_path / "out"
    halfbyte.convert(source, out, to=target, format="bf16")
    ids = [2, 300, 301, 302]
    want = model(torch.tensor([ids])).logits[0].detach().numpy()
    for path in (source, out):
        loaded = halfbyte.load(path, activations="f32")
        assert loaded.config.untied_head
        # Sums of float32 in another order, as in test_logits.py.
        np.testing.assert_allclose(
            loaded.logits(ids), want, rtol=0, atol=1e-4 * np.abs(want).max()
        )
