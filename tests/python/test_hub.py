# tests/python/test_hub.py
# Names of models: repositories of a hub on the loopback device, and the stores of Ollama
# and LM Studio as they lie on a disk.
# SPDX-License-Identifier: Apache-2.0
"""What a model may be called, and what is fetched for it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import fake_hub
import halfbyte
import pytest
import tiny
import torch
from fake_hub import digest
from halfbyte import ArgumentError, FormatError, TruncatedFileError, hub, names
from huggingface_hub import constants
from safetensors.torch import save_file

Server = fake_hub.Hub

NOISE = {
    "pytorch_model.bin": b"b" * 5000,
    "consolidated.pth": b"p" * 5000,
    "model.litertlm": b"l" * 5000,
    "onnx/model.onnx": b"o" * 5000,
    "mmproj-model-f16.gguf": b"m" * 5000,
    "preprocessor_config.json": b"{}",
    "README.md": b"read me",
}


# ---- a hub, a cache, models


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub that huggingface_hub takes for the real one, and an empty cache."""
    with fake_hub.serve() as running:
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub, "_PAUSE_SECONDS", 0.0)
        monkeypatch.chdir(tmp_path)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny model in the layout of the released safetensors."""

    def make(**options: Any) -> Path:
        model = tiny.talkative("e2b")
        path = tiny.save_hf(model, tmp_path / "made", released=True, **options)
        for name, data in NOISE.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(data)
        return path

    return make


def gguf(text: str) -> bytes:
    """Something of a large file's size that begins as GGUF does."""
    return b"GGUF" + text.encode() * (fake_hub.LARGE // len(text) + 1)


def cut_at(limit: int) -> Callable[[int, int], None]:
    """Progress that ends like Ctrl-C as soon as there are `limit` bytes."""

    def interrupt(done: int, _total: int) -> None:
        if done >= limit:
            raise KeyboardInterrupt

    return interrupt


# ---- what is fetched


def test_a_folder_is_fetched_and_runs(
    server: Server, folder: Callable[..., Path]
) -> None:
    made = folder(shards=3)
    server.add("google/tiny", made)
    seen: list[tuple[int, int]] = []
    model = halfbyte.load("google/tiny", progress=lambda *done: seen.append(done))
    ids = tiny.prompt()
    assert (model.logits(ids) == halfbyte.load(made).logits(ids)).all()
    index = "model.safetensors.index.json"
    shards = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    wanted = ["config.json", "tokenizer.json", index, *shards]
    assert sorted(server.sent) == sorted(wanted)
    total = sum((made / name).stat().st_size for name in wanted)
    assert (total, total) in seen


def test_a_shard_of_encoders_alone_is_not_fetched(
    server: Server, folder: Callable[..., Path]
) -> None:
    made = folder(shards=2)
    index = made / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    parts = ("vision_tower.a", "audio_tower.b", "embed_vision.c", "embed_audio.d")
    for part in parts:
        listed["weight_map"][f"model.{part}.weight"] = "eyes.safetensors"
    index.write_text(json.dumps(listed))
    tensors = {f"model.{part}.weight": torch.ones(9999) for part in parts}
    save_file(tensors, made / "eyes.safetensors")
    server.add("google/tiny", made)
    whole, ids = halfbyte.load(made), tiny.prompt()
    for offline in (False, True):
        model = halfbyte.load("google/tiny", local_files_only=offline)
        assert (model.logits(ids) == whole.logits(ids)).all()
    assert "eyes.safetensors" not in server.sent
    opened = halfbyte.open_safetensors(names.resolve("google/tiny"))
    wanted = "'eyes.safetensors', which has encoders alone, is not there"
    assert opened.warnings == [wanted]
    # The same of a shard with a single tensor of the text model is an error.
    listed["weight_map"]["model.language_model.x.weight"] = "eyes.safetensors"
    (made / "eyes.safetensors").unlink()
    index.write_text(json.dumps(listed))
    with pytest.raises(TruncatedFileError, match="IDX_SHARD_MISSING"):
        halfbyte.open_safetensors(made)


def test_one_file_of_weights_needs_no_index(
    server: Server, folder: Callable[..., Path]
) -> None:
    made = folder()
    (made / "chat_template.jinja").write_text("{{ messages }}")
    (made / "generation_config.json").write_text("{}")
    (made / "tokenizer_config.json").write_text("{ }")
    server.add("google/tiny", made)
    halfbyte.load("google/tiny")
    assert sorted(server.sent) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_nothing_is_fetched_twice(server: Server, folder: Callable[..., Path]) -> None:
    server.add("google/tiny", folder())
    first = names.resolve("google/tiny")
    server.sent.clear()
    assert names.resolve("hf:google/tiny") == first
    assert server.sent == []


def test_a_gguf_is_fetched_and_runs(
    server: Server, tiny_gguf: Callable[..., Path]
) -> None:
    made = tiny_gguf()
    files = {"tiny-Q4_0.gguf": made.read_bytes(), "tiny-Q8_0.gguf": gguf("other")}
    server.add("google/tiny-gguf", files | NOISE | {"config.json": b"{}"})
    model = halfbyte.load("google/tiny-gguf:q4_0")
    ids = tiny.prompt()
    assert (model.logits(ids) == halfbyte.load(made).logits(ids)).all()
    assert server.sent == ["tiny-Q4_0.gguf"]
    path = names.resolve("google/tiny-gguf/tiny-Q8_0.gguf")
    assert path.read_bytes() == files["tiny-Q8_0.gguf"]


def test_all_shards_of_a_gguf_are_fetched(server: Server) -> None:
    shards = [f"q8/big-Q8_0-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    files = {name: gguf(name) for name in shards}
    server.add("o/r", files | {"small-Q4_0.gguf": gguf("small")})
    for name in ("o/r:Q8_0", f"o/r/{shards[1]}", "o/r:big-Q8_0.gguf"):
        path = names.resolve(name)
        assert path.name == "big-Q8_0-00001-of-00003.gguf"
        assert [p.name for p in sorted(path.parent.iterdir())] == [
            Path(name).name for name in shards
        ]
    assert server.sent == shards


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q4_k_s", "m-Q4_K_S.gguf"),
        ("Q4_0", "E2B_q4_0-it.gguf"),
        ("UD-Q2_K_XL", "m-UD-Q2_K_XL.gguf"),
        ("BF16", "m.BF16.gguf"),
        ("m.BF16.gguf", "m.BF16.gguf"),
    ],
)
def test_a_type_picks_a_file(server: Server, wanted: str, found: str) -> None:
    types = ["m-Q4_K_M", "m-Q4_K_S", "E2B_q4_0-it", "m-UD-Q2_K_XL", "m.BF16"]
    server.add("o/r", {f"{name}.gguf": gguf(name) for name in types} | NOISE)
    assert names.resolve(f"o/r:{wanted}").name == found


def test_several_files_and_no_choice_is_an_error(server: Server) -> None:
    server.add("o/r", {f"m-Q{i}_0.gguf": gguf(str(i)) for i in range(12)})
    with pytest.raises(ArgumentError, match=r"12 GGUF files, name one.*Q0_0.*4 more"):
        names.resolve("o/r")
    with pytest.raises(FileNotFoundError, match=r"no GGUF file for 'Q4'.*there are"):
        names.resolve("o/r:Q4")
    assert server.sent == []


def test_what_cannot_be_loaded_is_not_fetched(server: Server) -> None:
    server.add("o/r", NOISE | {"config.json": b"{}"})
    with pytest.raises(FileNotFoundError, match="neither GGUF files nor config"):
        names.resolve("o/r")
    shard = "m-00001-of-00002.gguf"
    server.add("o/s", {shard: gguf("a")})
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 shards of m\.gguf"):
        names.resolve("o/s")
    assert server.sent == []


@pytest.mark.parametrize(
    ("index", "error", "match"),
    [
        (b"{", FormatError, "IDX_WEIGHT_MAP"),
        (b"[" * 100_000, FormatError, "IDX_WEIGHT_MAP"),
        (b"[]", FormatError, "IDX_WEIGHT_MAP"),
        (b'{"weight_map": {}}', FormatError, "IDX_WEIGHT_MAP"),
        (b'{"weight_map": {"a": 1}}', FormatError, "IDX_WEIGHT_MAP"),
        (b'{"weight_map": {"a": {}}}', FormatError, "IDX_WEIGHT_MAP"),
        (b'{"weight_map": {"a": "../x.safetensors"}}', OSError, "no shard ../x"),
        (b'{"weight_map": {"a": "a\\nb"}}', OSError, r"no shard a\\nb"),
        (b'{"weight_map": {"a": "onnx/model.onnx"}}', OSError, "no shard onnx"),
    ],
)
def test_a_hostile_index_is_refused(
    server: Server, index: bytes, error: type[Exception], match: str
) -> None:
    shard = {"model-00001-of-00002.safetensors": b"x"}
    listed = {"config.json": b"{}", "model.safetensors.index.json": index}
    server.add("o/r", NOISE | shard | listed)
    with pytest.raises(error, match=match) as caught:
        names.resolve("o/r")
    assert "\n" not in str(caught.value)
    assert server.sent == ["model.safetensors.index.json"]


# ---- interruptions


def test_an_interrupted_download_goes_on_where_it_ended(server: Server) -> None:
    data = os.urandom(5 << 20)
    server.add("o/r", {"m.gguf": data})
    with pytest.raises(KeyboardInterrupt):
        names.resolve("o/r", progress=cut_at(2 << 20))
    seen: list[int] = []
    path = names.resolve("o/r", progress=lambda done, _total: seen.append(done))
    assert path.read_bytes() == data
    first, second = (r.range for r in server.log if r.path.startswith("/cdn/"))
    assert first is None
    assert second is not None
    begin = int(second.removeprefix("bytes=").removesuffix("-"))
    assert 2 << 20 <= begin < len(data)
    assert (seen[0], seen[-1]) == (begin, len(data))
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


def test_a_connection_that_breaks_is_taken_up_again(server: Server) -> None:
    data = os.urandom(3 << 20)
    server.add("o/r", {"m.gguf": data})
    server.cuts = [1 << 20, 0, 1 << 20, 0, 0, 0, 0]
    assert names.resolve("o/r").read_bytes() == data
    ranges = [r.range for r in server.log if r.path.startswith("/cdn/")]
    one, two = f"bytes={1 << 20}-", f"bytes={2 << 20}-"
    assert ranges == [None, one, one, two, two, two, two, two]


def test_a_connection_that_stays_broken_is_one_line(server: Server) -> None:
    data = os.urandom(3 << 20)
    server.add("o/r", {"m.gguf": data})
    server.cuts = [1 << 20] + [0] * 5
    with pytest.raises(
        ConnectionError, match=rf"byte {1 << 20} of {3 << 20}"
    ) as caught:
        names.resolve("o/r")
    assert "\n" not in str(caught.value)
    assert server.cuts == []
    assert names.resolve("o/r").read_bytes() == data
    assert server.log[-1].method == "HEAD"
    assert server.sent.count("m.gguf") == 7


def test_a_server_without_ranges_starts_anew(server: Server) -> None:
    data = os.urandom(3 << 20)
    server.add("o/r", {"m.gguf": data})
    server.cuts, server.deaf_to_ranges = [1 << 20], True
    seen: list[int] = []
    path = names.resolve("o/r", progress=lambda done, _total: seen.append(done))
    assert path.read_bytes() == data
    assert seen[-1] == len(data)


def test_a_truncated_file_is_refused(server: Server) -> None:
    server.add("o/r", {"m.gguf": gguf("long")})
    server.short = 100
    with pytest.raises(TruncatedFileError, match=r"incomplete download\?.*HUB_SIZE"):
        names.resolve("o/r")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("m.gguf"))


def test_wrong_bytes_are_refused_and_not_kept(server: Server) -> None:
    data = gguf("right")
    server.add("o/r", {"m.gguf": data})
    server.flipped = True
    with pytest.raises(FormatError, match=f"expected {digest(data)}.*HUB_DIGEST"):
        names.resolve("o/r")
    server.flipped = False
    assert names.resolve("o/r").read_bytes() == data


def test_a_file_that_is_longer_than_announced_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, original = gguf("long"), fake_hub.Repo.entry
    less = {"size": len(data) - 1}
    monkeypatch.setattr(
        fake_hub.Repo, "entry", lambda self, name: original(self, name) | less
    )
    server.add("o/r", {"m.gguf": data})
    with pytest.raises(
        FormatError, match=f"sent {len(data)} bytes.*HUB_SIZE"
    ) as caught:
        names.resolve("o/r")
    assert not isinstance(caught.value, TruncatedFileError)


def test_what_was_begun_and_is_too_long_is_begun_anew(server: Server) -> None:
    data = gguf("right")
    server.add("o/r", {"m.gguf": data})
    blobs = Path(constants.HF_HUB_CACHE) / "models--o--r" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest(data)}.halfbyte.incomplete").write_bytes(data + b"x")
    seen: list[int] = []
    path = names.resolve("o/r", progress=lambda done, _total: seen.append(done))
    assert path.read_bytes() == data
    assert (seen[0], seen[-1]) == (0, len(data))
    assert [r.range for r in server.log if r.path.startswith("/cdn/")] == [None]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_cached_file_of_the_wrong_size_is_refused(
    server: Server, change: int
) -> None:
    data = gguf("right")
    server.add("o/r", {"m.gguf": data})
    path = names.resolve("o/r")
    path.resolve().write_bytes((data + b"x")[: len(data) + change])
    kind = TruncatedFileError if change < 0 else FormatError
    with pytest.raises(kind, match=f"{len(data) + change} bytes; expected {len(data)}"):
        names.resolve("o/r")


def test_a_full_disk_says_what_is_needed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = gguf("large")
    server.add("o/r", {"m.gguf": data})
    monkeypatch.setattr(hub._Download, "_stream", full)
    with pytest.raises(OSError, match=rf"m\.gguf has {len(data)} bytes") as caught:
        names.resolve("o/r")
    assert caught.value.errno == errno.ENOSPC


# ---- revisions, rights, errors


def test_a_revision_is_pinned(server: Server) -> None:
    repo = server.add("o/r", {"m.gguf": gguf("old")})
    old = repo.commit
    path = names.resolve("o/r", revision=old)
    assert names.resolve(f"o/r@{old}") == path
    server.add("o/r", {"m.gguf": gguf("new")})
    assert names.resolve("o/r", revision="v1").read_bytes() == gguf("new")
    assert path.read_bytes() == gguf("old")
    assert names.resolve(f"o/r@{old}", local_files_only=True) == path
    new = names.resolve("o/r@v1", local_files_only=True)
    assert new.read_bytes() == gguf("new")


def test_a_branch_that_moves_meanwhile_is_followed(server: Server) -> None:
    """Bytes come from the commit that was listed; the branch may name another by then."""
    old, new = os.urandom(3 << 20), gguf("new")
    first = server.add("o/r", {"m.gguf": old}).commit

    def move(done: int, _total: int) -> None:
        if done and server.repos["o/r"].commit == first:
            server.add("o/r", {"m.gguf": new})

    path = names.resolve("o/r", progress=move)
    assert path.read_bytes() == new
    assert path.parent.name == server.repos["o/r"].commit != first
    asked = [r.path for r in server.log if r.method == "GET" and "/resolve/" in r.path]
    assert asked[0] == f"/o/r/resolve/{first}/m.gguf"


def test_a_wrong_revision_is_named(server: Server) -> None:
    server.add("o/r", {"m.gguf": gguf("x")})
    with pytest.raises(FileNotFoundError, match=r"^o/r: no revision 'v7' at http"):
        names.resolve("o/r@v7")
    with pytest.raises(ArgumentError, match="revision"):
        names.resolve("o/r@v1", revision="main")
    with pytest.raises(ArgumentError, match="revision"):
        names.resolve("made.gguf", revision="main")
    with pytest.raises(ArgumentError, match="revision"):
        names.resolve("ollama:gemma", revision="main")


def test_a_wrong_repository_is_named_with_the_nearest(server: Server) -> None:
    server.add("google/gemma-4-E2B", {"m.gguf": gguf("x")})
    with pytest.raises(FileNotFoundError) as caught:
        names.resolve("google/gemma-4-E2b")
    assert str(caught.value).startswith("google/gemma-4-E2b: no such file here, and no")
    assert "did you mean" not in str(caught.value)
    names.resolve("google/gemma-4-E2B")
    with pytest.raises(FileNotFoundError, match=r"did you mean google/gemma-4-E2B\?"):
        names.resolve("google/gemma-4-E2b")


def test_a_gated_repository_says_where_to_ask(server: Server) -> None:
    server.add("google/gated", {"m.gguf": gguf("x")}).gated = True
    with pytest.raises(
        PermissionError, match=f"{server.url}/google/gated.*hf auth login"
    ):
        names.resolve("google/gated")


@pytest.mark.parametrize(
    "entry",
    [
        {"rfilename": "../../m.gguf"},
        {"rfilename": "/m.gguf"},
        {"rfilename": 3},
        {"blobId": "../../../x"},
        {"blobId": "a" * 41},
        {"size": -1},
        {"size": "9"},
    ],
)
def test_a_hostile_listing_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, entry: dict[str, object]
) -> None:
    server.add("o/r", {"m.gguf": b"GGUF"})
    original = fake_hub.Repo.entry
    assert names.resolve("o/r").read_bytes() == b"GGUF"
    monkeypatch.setattr(
        fake_hub.Repo, "entry", lambda self, name: original(self, name) | entry
    )
    server.add("o/s", {"m.gguf": b"GGUF"})
    with pytest.raises(ConnectionError, match="no answer of a hub"):
        names.resolve("o/s")
    assert server.sent == ["m.gguf"]


def test_a_server_that_is_no_hub_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in (b"<!doctype html><p>Please log in.", b"[]", b"{}", b'{"siblings": 3}'):
        monkeypatch.setattr(fake_hub, "front_page", page)
        with pytest.raises(ConnectionError, match=f"{server.url}: no answer of a hub"):
            names.resolve("o/r")


def test_a_name_that_the_hub_does_not_allow_is_one_line() -> None:
    for name in ("o/a--b", "o/r.git"):
        with pytest.raises(ArgumentError, match=f"^{name}: ") as caught:
            names.resolve(name)
        assert "\n" not in str(caught.value)


def test_a_token_goes_to_the_hub_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.add("o/r", {"m.gguf": gguf("x")})
    names.resolve("o/r")
    for request in server.log:
        if not request.path.startswith("/api/agent"):
            assert request.authorized != request.path.startswith("/cdn/"), request


def test_without_the_extra_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "halfbyte\[hub\]"') as caught:
        halfbyte.load("google/tiny")
    assert "\n" not in str(caught.value)


# ---- without a connection


def test_the_cache_serves_offline(
    server: Server, folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("google/tiny", folder(shards=2))
    path = names.resolve("google/tiny")
    server.log.clear()
    assert names.resolve("google/tiny", local_files_only=True) == path
    halfbyte.load("google/tiny", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert names.resolve("google/tiny") == path
    assert server.log == []


def test_the_cache_serves_when_the_server_is_gone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("o/r", {"m-Q4_0.gguf": gguf("4"), "m-Q8_0.gguf": gguf("8")})
    path = names.resolve("o/r:Q4_0")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discards
    assert names.resolve("o/r:Q4_0") == path
    assert names.resolve("o/r") == path  # the only one there
    with pytest.raises(ConnectionError, match=r"'Q8_0'.*http://127\.0\.0\.1:9"):
        names.resolve("o/r:Q8_0")
    with pytest.raises(ConnectionError, match=r"^o/s: not in .*127\.0\.0\.1:9: "):
        names.resolve("o/s")


@pytest.mark.parametrize("wanted", ["o/r", "o/r:Q8_0"])
def test_a_server_that_goes_away_in_the_end_brings_no_old_model(
    wanted: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # huggingface_hub gives the snapshot it had if it cannot ask which is the newest.
    server.add("o/r", {"m-Q4_0.gguf": gguf("old")})
    old = names.resolve("o/r")
    new = {"m-Q4_0.gguf": gguf("new")}
    server.add("o/r", new if wanted == "o/r" else new | {"m-Q8_0.gguf": gguf("8")})
    linked = hub._Download._linked

    def late(self: Any, needed: list[str]) -> Path:
        with monkeypatch.context() as gone:
            gone.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            return linked(self, needed)

    with monkeypatch.context() as during:
        during.setattr(hub._Download, "_linked", late)
        with pytest.raises(ConnectionError, match=r"^o/r: fetched, but not linked"):
            names.resolve(wanted)
    path = names.resolve(wanted)
    assert path != old
    assert path.read_bytes() == gguf("new" if wanted == "o/r" else "8")


def test_offline_without_it_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("o/r", {"m.gguf": gguf("x")})
    with pytest.raises(
        FileNotFoundError, match=r"not in .*cache, and local_files_only"
    ):
        names.resolve("o/r", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"^o/r@v1: .*and HF_HUB_OFFLINE forb"):
        names.resolve("o/r@v1")
    assert server.log == []


def test_half_a_model_in_the_cache_is_no_model(
    server: Server, folder: Callable[..., Path]
) -> None:
    server.add("google/tiny", folder(shards=2))
    path = names.resolve("google/tiny")
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no shard model-00002.*local_files_only"
    ):
        names.resolve("google/tiny", local_files_only=True)
    assert names.resolve("google/tiny") == path
    assert (path / "model-00002-of-00002.safetensors").exists()


# ---- names and paths


@pytest.mark.usefixtures("server")
def test_a_path_stays_a_path(tmp_path: Path, tiny_gguf: Callable[..., Path]) -> None:
    (tmp_path / "google").mkdir()
    for name in (
        "google/tiny",
        "models/m.gguf",
        "./a/b",
        "a/b/c",
        "m.gguf",
        "x",
        "a/b?",
    ):
        assert names.is_path(name), name
        assert names.resolve(name) == Path(name)
    for text in ("o/r", "hf:google/tiny", "o/r:Q4_0", "o/r/m.gguf", "ollama:x"):
        assert not names.is_path(text), text
        assert names.is_path(Path(text))
    (tmp_path / "hf:google").mkdir()
    (tmp_path / "hf:google" / "tiny").write_bytes(tiny_gguf().read_bytes())
    assert halfbyte.load("hf:google/tiny").config.architecture == "gemma4"
    with pytest.raises(FileNotFoundError):
        halfbyte.load("google/tiny")


@pytest.mark.parametrize(
    "name", ["hf:", "hf:tiny", "hf:../r", "hf:o/..", "hf:o/r:a b", "hf:o/r/m.gguf:Q4_0"]
)
def test_a_name_of_no_form_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="expected hf:OWNER/REPO"):
        names.resolve(name)


@pytest.mark.parametrize("rest", ["", "/", "/tree/main", "/resolve/main/m.gguf?x=1"])
@pytest.mark.parametrize("host", ["https://huggingface.co", "http://hf.co"])
def test_an_address_is_told_its_name(host: str, rest: str) -> None:
    with pytest.raises(ArgumentError, match=r"of this repository it is google/tiny$"):
        halfbyte.load(f"{host}/google/tiny{rest}")


# ---- Ollama


DATA = gguf("ollama")
LAYER = {
    "mediaType": "application/vnd.ollama.image.model",
    "digest": f"sha256:{digest(DATA)}",
    "size": len(DATA),
}


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of Ollama with a blob in it and no manifest."""
    root = tmp_path / "ollama"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / f"sha256-{digest(DATA)}").write_bytes(DATA)
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    return root


def pulled(
    root: Path, *layers: object, name: str = "registry.ollama.ai/library/gemma4/e2b"
) -> Path:
    """Write a manifest with these layers."""
    path = root / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    other = {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:x"}
    path.write_text(json.dumps({"schemaVersion": 2, "layers": [other, *layers]}))
    return path


def test_a_model_of_ollama_is_read_in_place(
    ollama: Path, tiny_gguf: Callable[..., Path]
) -> None:
    data = tiny_gguf().read_bytes()
    blob = ollama / "blobs" / f"sha256-{digest(data)}"
    blob.write_bytes(data)
    pulled(ollama, LAYER | {"digest": f"sha256:{digest(data)}", "size": len(data)})
    before = sorted(ollama.rglob("*"))
    model = halfbyte.load("ollama:gemma4:e2b")
    assert model.report().path == str(blob)
    assert model.logits(tiny.prompt()).shape[0] == len(tiny.prompt())
    assert sorted(ollama.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("gemma4", "registry.ollama.ai/library/gemma4/latest"),
        ("someone/gemma:x", "registry.ollama.ai/someone/gemma/x"),
        ("hf.co/o/gemma-GGUF:Q4_0", "hf.co/o/gemma-GGUF/Q4_0"),
    ],
)
def test_names_of_ollama_are_its_own(ollama: Path, name: str, manifest: str) -> None:
    pulled(ollama, LAYER, name=manifest)
    found = names.resolve(f"ollama:{name}")
    assert found == ollama / "blobs" / f"sha256-{digest(DATA)}"


def test_ollamas_stores_are_found_without_the_variable(
    ollama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    pulled(ollama, LAYER)
    with pytest.raises(FileNotFoundError, match=r"/usr/share/ollama/\.ollama/models"):
        names.resolve("ollama:gemma4:e2b")
    (tmp_path / ".ollama").mkdir()
    ollama.rename(tmp_path / ".ollama" / "models")
    assert names.resolve("ollama:gemma4:e2b").read_bytes() == DATA


def test_a_missing_model_of_ollama_is_named_with_the_nearest(ollama: Path) -> None:
    pulled(ollama, LAYER)
    pulled(ollama, LAYER, name="hf.co/o/gemma-GGUF/Q4_0")
    with pytest.raises(FileNotFoundError) as caught:
        names.resolve("ollama:gemma4:e4b")
    assert str(caught.value) == (
        f"ollama:gemma4:e4b: not in {ollama}; fetch it with: ollama pull gemma4:e4b - "
        "did you mean gemma4:e2b?"
    )
    with pytest.raises(
        FileNotFoundError, match=r"there are: gemma4:e2b, hf\.co/o/gemma"
    ):
        names.resolve("ollama:llama")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "..",
        "../x",
        "a/../b",
        "a/b/c/d",
        "a:b:c",
        "a:..",
        "a:",
        "/a",
        "a b",
        "a\0",
    ],
)
def test_no_name_leads_out_of_ollamas_store(ollama: Path, name: str) -> None:
    pulled(ollama, LAYER, name="../outside")
    with pytest.raises(ArgumentError, match="expected ollama:MODEL:TAG"):
        names.resolve(f"ollama:{name}")


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"digest": "sha256:../../../../etc/passwd"}, FormatError, "OLLAMA_DIGEST"),
        ({"digest": f"sha256:{'A' * 64}"}, FormatError, "OLLAMA_DIGEST"),
        ({"digest": f"sha256:{'a' * 64}\n"}, FormatError, "OLLAMA_DIGEST"),
        ({"digest": f"sha256:{'a' * 4000}"}, FormatError, "OLLAMA_DIGEST"),
        ({"digest": f"sha512:{digest(DATA)}"}, FormatError, "OLLAMA_DIGEST"),
        ({"digest": [1]}, FormatError, "OLLAMA_DIGEST"),
        ({"size": -1}, FormatError, "OLLAMA_LAYER_SIZE"),
        ({"size": True}, FormatError, "OLLAMA_LAYER_SIZE"),
        ({"size": "9"}, FormatError, "OLLAMA_LAYER_SIZE"),
        ({"size": len(DATA) + 1}, TruncatedFileError, "OLLAMA_BLOB_SIZE"),
        ({"size": len(DATA) - 1}, FormatError, "OLLAMA_BLOB_SIZE"),
        ({"mediaType": "x"}, halfbyte.UnsupportedError, "OLLAMA_MODEL"),
    ],
)
def test_a_hostile_manifest_is_refused(
    ollama: Path, change: dict[str, object], error: type[halfbyte.Error], code: str
) -> None:
    pulled(ollama, LAYER | change)
    with pytest.raises(error) as caught:
        names.resolve("ollama:gemma4:e2b")
    assert type(caught.value) is error
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "OLLAMA_JSON"),
        (b"\xff", "OLLAMA_JSON"),
        (b"[" * 100_000, "OLLAMA_JSON"),
        (b"[]", "OLLAMA_LAYERS"),
        (b'{"layers": {}}', "OLLAMA_LAYERS"),
        (b" " * (2 << 20), "OLLAMA_SIZE"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    ollama: Path, text: bytes, code: str
) -> None:
    pulled(ollama, LAYER).write_bytes(text)
    with pytest.raises(FormatError) as caught:
        names.resolve("ollama:gemma4:e2b")
    assert caught.value.code == code


def test_odd_layers_are_passed_over_and_two_models_are_not(ollama: Path) -> None:
    pulled(ollama, None, [], 3, LAYER)
    names.resolve("ollama:gemma4:e2b")
    pulled(ollama, LAYER, LAYER)
    with pytest.raises(halfbyte.UnsupportedError, match="2 layers"):
        names.resolve("ollama:gemma4:e2b")


def test_a_missing_blob_says_what_to_do(ollama: Path) -> None:
    pulled(ollama, LAYER | {"digest": f"sha256:{'0' * 64}"})
    with pytest.raises(FileNotFoundError, match="pull the model again"):
        names.resolve("ollama:gemma4:e2b")


# ---- LM Studio


@pytest.fixture
def lmstudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with a store of LM Studio, of one model in two types."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = tmp_path / ".lmstudio" / "models" / "google" / "gemma-4-GGUF"
    model.mkdir(parents=True)
    for name in ("gemma-Q4_0.gguf", "gemma-Q8_0.gguf", "mmproj-gemma-BF16.gguf"):
        (model / name).write_bytes(gguf(name))
    return tmp_path


def test_a_model_of_lm_studio_is_found(lmstudio: Path) -> None:
    model = lmstudio / ".lmstudio" / "models" / "google" / "gemma-4-GGUF"
    for file in ("gemma-Q8_0.gguf", "Q8_0"):
        found = names.resolve(f"lmstudio:google/gemma-4-GGUF/{file}")
        assert found == model / "gemma-Q8_0.gguf"
    with pytest.raises(ArgumentError, match=r"2 GGUF files.*gemma-Q4_0\.gguf"):
        names.resolve("lmstudio:google/gemma-4-GGUF")
    (model / "gemma-Q8_0.gguf").unlink()
    assert names.resolve("lmstudio:google/gemma-4-GGUF") == model / "gemma-Q4_0.gguf"


def test_a_missing_model_of_lm_studio_is_named_with_the_nearest(
    lmstudio: Path,
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        names.resolve("lmstudio:google/gemma-4-gguf")
    folders = [
        lmstudio / ".lmstudio" / "models",
        lmstudio / ".cache" / "lm-studio" / "models",
    ]
    assert str(caught.value) == (
        f"lmstudio:google/gemma-4-gguf: not in {folders[0]} or {folders[1]} - did you "
        "mean google/gemma-4-GGUF?"
    )
    with pytest.raises(FileNotFoundError, match=r"no GGUF file for 'Q2_K' - there are"):
        names.resolve("lmstudio:google/gemma-4-GGUF/Q2_K")


def test_lm_studio_may_keep_its_models_elsewhere(lmstudio: Path) -> None:
    model = "google/gemma-4-GGUF"
    old = lmstudio / ".cache" / "lm-studio" / "models"
    old.parent.mkdir(parents=True)
    (lmstudio / ".lmstudio" / "models").rename(old)
    path = old / model / "gemma-Q4_0.gguf"
    assert names.resolve(f"lmstudio:{model}/Q4_0") == path
    chosen = lmstudio / "chosen"
    old.rename(chosen)
    settings = lmstudio / ".lmstudio" / "settings.json"
    settings.write_text(json.dumps({"downloadsFolder": str(chosen)}))
    assert names.resolve(f"lmstudio:{model}/Q4_0").parent == chosen / model
    home = lmstudio / "home"
    home.mkdir()
    settings.rename(home / "settings.json")
    (lmstudio / ".lmstudio-home-pointer").write_text(f"{home}\n")
    assert names.resolve(f"lmstudio:{model}/Q4_0").parent == chosen / model


@pytest.mark.parametrize("text", ["", "[]", "{", '{"downloadsFolder": 3}', "\xff" * 9])
def test_settings_that_cannot_be_read_do_not_matter(lmstudio: Path, text: str) -> None:
    settings = lmstudio / ".lmstudio" / "settings.json"
    settings.write_text(text, encoding="latin-1")
    names.resolve("lmstudio:google/gemma-4-GGUF/Q4_0")


@pytest.mark.parametrize("name", ["", "a", "a/", "/a", "../a", "a/..", "./a", "a/\0"])
def test_no_name_leads_out_of_lm_studios_store(lmstudio: Path, name: str) -> None:
    (lmstudio / ".lmstudio" / "m.gguf").write_bytes(DATA)
    with pytest.raises(ArgumentError, match="expected lmstudio:PUBLISHER/MODEL"):
        names.resolve(f"lmstudio:{name}")
    with pytest.raises(FileNotFoundError, match="no GGUF file for"):
        names.resolve("lmstudio:google/gemma-4-GGUF/../../../m.gguf")


# ---- the command, in a process of its own with the variables as users set them


def command(
    server: Server, tmp_path: Path, *args: str, **extra: str
) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "halfbyte", *args],
        check=False,
        capture_output=True,
        text=True,
        env=env | extra,
        input="the end of the line",
        timeout=120,
    )


def test_commands_take_a_name(
    server: Server, tmp_path: Path, tiny_gguf: Callable[..., Path]
) -> None:
    server.add("google/tiny", {"tiny.gguf": tiny_gguf().read_bytes()})
    run = command(server, tmp_path, "run", "google/tiny", "-n", "4", "--quiet")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip()
    assert server.sent == ["tiny.gguf"]
    for line in (
        ["inspect", "google/tiny"],
        ["tokenize", "google/tiny"],
        ["tokenize", "hf:google/tiny", "some text"],
        ["perplexity", "google/tiny", "--file", "-"],
        ["run", "google/tiny", "some text", "-n", "4"],
    ):
        done = command(server, tmp_path, *line, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr
        assert done.stdout
    assert server.sent == ["tiny.gguf"]


def test_commands_say_what_is_wrong_in_a_line(server: Server, tmp_path: Path) -> None:
    server.add("o/r", {"a-Q4_0.gguf": gguf("a"), "a-Q8_0.gguf": gguf("b")})
    for name, code, part in (
        ("o/r", 2, "2 GGUF files, name one"),
        ("o/x", 2, "no such repository"),
        ("o/r@v7", 2, "no revision 'v7'"),
        ("ollama:llama", 2, "ollama pull llama"),
    ):
        done = command(server, tmp_path, "run", name, OLLAMA_MODELS=str(tmp_path))
        assert done.returncode == code
        assert done.stdout == ""
        assert done.stderr.startswith("halfbyte: ")
        assert part in done.stderr
        assert len(done.stderr.splitlines()) == 1
