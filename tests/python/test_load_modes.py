# tests/python/test_load_modes.py
# Files that are read into memory instead of mapped, and limits that a caller sets.
# SPDX-License-Identifier: Apache-2.0
"""Files that are read into memory instead of mapped, and limits that a caller sets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import halfbyte
import numpy as np
import pytest
from halfbyte import bundled
from halfbyte.files import open_file

IDS = [2, 300, 301, 302, 303]
READERS = [open_file, halfbyte.open_safetensors]


@pytest.fixture(params=["tiny", "tiny-mobile"])
def own_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Copy a file or a directory of the package, which a test may spoil."""
    source = bundled.locate(request.param)
    target = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


def weights_of(model: Path) -> list[Path]:
    """Return the files of a model that hold tensors."""
    return sorted(model.glob("*.safetensors")) if model.is_dir() else [model]


def empty(model: Path) -> None:
    """Cut the weights off in place, as another machine may."""
    for path in weights_of(model):
        path.write_bytes(b"")


def write_safetensors(path: Path, tensors: Mapping[str, Any], data: int) -> Path:
    """Write a header, and so many bytes of zeros that take no room on a disk."""
    header = json.dumps(tensors).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + data)
    return path


# --- copies ----------------------------------------------------------------------------


@pytest.mark.parametrize("repack", ["never", "always"])
def test_a_copied_model_needs_its_files_no_more(own_model: Path, repack: str) -> None:
    model = halfbyte.load(own_model, load="copy", repack=repack)
    want = halfbyte.load(own_model, repack=repack).logits(IDS)
    empty(own_model)
    np.testing.assert_array_equal(model.logits(IDS), want)


def test_a_copied_file_is_not_needed_any_more(own_model: Path) -> None:
    file = open_file(own_model, load="copy")
    name = file.tensors[-1].name
    want = open_file(own_model).tensor_bytes(name).copy()
    empty(own_model)
    np.testing.assert_array_equal(file.tensor_bytes(name), want)


@pytest.mark.parametrize("load", ["mmap", "auto"])
def test_files_on_a_disk_are_mapped(own_model: Path, load: Any) -> None:
    model = halfbyte.load(own_model, load=load)
    file = open_file(own_model, load=load)
    empty(own_model)
    for use in (
        lambda: model.logits(IDS),
        lambda: file.tensor_bytes(file.tensors[0].name),
    ):
        with pytest.raises(halfbyte.FileChangedError):
            use()


def is_mapped(model: Path) -> bool:
    """Tell whether a file of the model is mapped into this process."""
    maps = Path("/proc/self/maps").read_text()
    return any(str(path) in maps for path in weights_of(model))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_a_closed_file_is_let_go_of(own_model: Path) -> None:
    with open_file(own_model) as file:
        name = file.tensors[0].name
        assert is_mapped(own_model)
    assert not is_mapped(own_model)
    file = open_file(own_model)
    kept, want = file.tensor_bytes(name), file.tensor_bytes(name).copy()
    file.close()
    file.close()
    assert is_mapped(own_model)
    assert np.array_equal(kept, want)
    del kept
    assert not is_mapped(own_model)


@pytest.mark.parametrize(
    "asked",
    [
        lambda file: file.metadata,
        lambda file: file.rendered_metadata,
        lambda file: file.warnings,
        lambda file: file.file_bytes,
        lambda file: file.tensor_bytes(file.tensors[0].name),
        lambda file: file.weight(file.tensors[0].name),
        lambda file: file.read(file.tensors[0].name, 0, np.empty(1, np.uint8)),
        lambda file: file.__enter__(),
    ],
)
def test_a_closed_file_says_so(asked: Callable[..., Any], own_model: Path) -> None:
    with pytest.raises(KeyError), open_file(own_model) as file:  # errors go on
        file.tensor_bytes("none of this name")
    with pytest.raises(
        halfbyte.ArgumentError, match=r"was closed: open it ag"
    ) as caught:
        asked(file)
    assert str(caught.value).startswith(file.paths[0])
    assert "\n" not in str(caught.value)
    assert file.tensors
    assert file.paths[0] in repr(file)


def test_content_tells_what_a_file_is_before_its_name(
    own_model: Path, tmp_path: Path
) -> None:
    (source,) = weights_of(own_model)
    tensors = open_file(own_model).tensors
    is_gguf = source.suffix == ".gguf"
    for name in ("m.gguf", "m.safetensors", "m", "m.json"):
        path = tmp_path / "renamed" / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(source, path)
        if is_gguf or name in ("m.safetensors", "m.json"):
            assert open_file(path).tensors == tensors
        else:  # which safetensors have no sign for
            with pytest.raises(halfbyte.FormatError, match="GGUF_BAD_MAGIC"):
                open_file(path)


def test_progress_tells_of_the_copy_and_then_of_repacking(own_model: Path) -> None:
    calls: list[tuple[int, int]] = []
    model = halfbyte.load(
        own_model,
        load="copy",
        repack="always",
        progress=lambda done, total: calls.append((done, total)),
    )
    sizes = [path.stat().st_size for path in weights_of(own_model)]
    copied, repacked = calls[: len(sizes)], calls[len(sizes) :]
    assert copied == [(size, size) for size in sizes]
    assert repacked[-1] == (model.report().repacked_bytes,) * 2


def test_a_progress_that_raises_ends_the_copy(own_model: Path) -> None:
    calls = []

    def stop(*counts: int) -> None:
        calls.append(counts)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        halfbyte.load(own_model, load="copy", repack="never", progress=stop)
    assert len(calls) == 1


INTERRUPTED = """
import signal, sys
import halfbyte
from halfbyte import _core

signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.001)
try:
    halfbyte.open_safetensors(sys.argv[1], load="copy")
except KeyboardInterrupt:
    print(_core.peak_rss())
"""


def test_ctrl_c_ends_a_copy_on_the_way(tmp_path: Path) -> None:
    size = 1 << 30
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    path = write_safetensors(tmp_path / "large.safetensors", {"w": entry}, size)
    out = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert 0 < int(out.stdout) < size * 3 // 4


def test_more_than_there_is_memory_is_not_copied(tmp_path: Path) -> None:
    size = 1 << 42
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    try:
        path = write_safetensors(tmp_path / "huge.safetensors", {"w": entry}, size)
    except OSError as error:
        pytest.skip(f"no file of 4 TiB here: {error}")
    with pytest.raises(halfbyte.OutOfMemoryError, match='load="mmap"'):
        halfbyte.open_safetensors(path, load="copy")
    assert halfbyte.open_safetensors(path).file_bytes > size


# --- limits ----------------------------------------------------------------------------


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Write a tensor of more dimensions than anybody needs."""
    entry = {"dtype": "U8", "shape": [1] * 20, "data_offsets": [0, 1]}
    return write_safetensors(tmp_path / "deep.safetensors", {"w": entry}, 1)


@pytest.mark.parametrize("opened", READERS)
def test_a_limit_can_be_raised(deep: Path, opened: Callable[..., Any]) -> None:
    with pytest.raises(halfbyte.LimitError, match="limits= raises it"):
        opened(deep)
    assert opened(deep, limits={"rank": 20}).tensors[0].shape == (1,) * 20


@pytest.mark.parametrize(
    "limit", ["header_bytes", "string_bytes", "array_elements", "keys", "tensors"]
)
@pytest.mark.parametrize("opened", [halfbyte.open_gguf, halfbyte.load])
def test_a_limit_can_be_lowered(limit: str, opened: Callable[..., Any]) -> None:
    path = bundled.locate("tiny")
    with pytest.raises(halfbyte.LimitError, match="limits= raises it"):
        opened(path, limits={limit: 3})
    opened(path, limits={limit: 2**40})


def test_limits_of_directories_are_set_too() -> None:
    folder = bundled.locate("tiny-mobile")
    with pytest.raises(halfbyte.LimitError, match="limits= raises it"):
        halfbyte.load(folder, limits={"header_bytes": 100})
    halfbyte.load(folder, limits={"header_bytes": 2**30})


@pytest.mark.parametrize("most", [2, 2**64 - 2, 2**64 - 1])
def test_any_number_of_tensors_may_be_allowed(tmp_path: Path, most: int) -> None:
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    path = write_safetensors(tmp_path / "one.safetensors", {"w": entry}, 1)
    assert len(halfbyte.open_safetensors(path, limits={"tensors": most}).tensors) == 1


def test_every_limit_says_how_it_is_raised(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    many = write_safetensors(
        tmp_path / "many.safetensors", dict.fromkeys("abcd", entry), 0
    )
    with pytest.raises(halfbyte.LimitError, match="limits= raises it"):
        halfbyte.open_safetensors(many, limits={"tensors": 2})
    assert len(halfbyte.open_safetensors(many, limits={"tensors": 4}).tensors) == 4
    for name, limit, set_key in (
        ("aligned", "alignment", lambda w: w.add_custom_alignment(64)),
        ("split", "shards", lambda w: add_split(w, 5)),
    ):
        path = tmp_path / f"{name}-00001-of-00005.gguf"
        writer = gguf.GGUFWriter(path, "none")
        set_key(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with pytest.raises(halfbyte.LimitError, match="limits= raises it"):
            halfbyte.open_gguf(path, limits={limit: 4})


def add_split(writer: gguf.GGUFWriter, count: int) -> None:
    """Say that the file is the first of `count` shards."""
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", 0)


def test_strict_refuses_what_else_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "longer.gguf"
    path.write_bytes(bundled.locate("tiny").read_bytes() + b"\1" * 64)
    assert halfbyte.open_gguf(path).warnings
    with pytest.raises(halfbyte.FormatError, match=r"longer\.gguf"):
        halfbyte.open_gguf(path, limits={"strict": True})


def linked_shard(tmp_path: Path) -> Path:
    """Write an index whose only shard is a link out of the directory."""
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    far = write_safetensors(tmp_path / "far.safetensors", {"w": entry}, 1)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "near.safetensors").symlink_to(far)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "near.safetensors"}}))
    return index


def test_strict_paths_refuse_links_out_of_the_directory(tmp_path: Path) -> None:
    index = linked_shard(tmp_path)
    assert [t.name for t in halfbyte.open_safetensors(index).tensors] == ["w"]
    with pytest.raises(halfbyte.FormatError, match="as strict_paths demands"):
        halfbyte.open_safetensors(index, limits={"strict_paths": True})


@pytest.mark.parametrize("opened", [halfbyte.open_gguf, halfbyte.load])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"load": "ram"}, halfbyte.ArgumentError, "expected mmap, copy or auto"),
        ({"load": None}, halfbyte.DTypeError, "^load: expected"),
        ({"limits": {"dragons": 1}}, halfbyte.ArgumentError, "found 'dragons'; expec"),
        ({"limits": {"keys": -1}}, halfbyte.ArgumentError, r"^limits\['keys'\]: exp"),
        ({"limits": {"keys": "9"}}, halfbyte.DTypeError, r"^limits\['keys'\]: expect"),
        ({"limits": {1: 1}}, halfbyte.DTypeError, "^limits: expected"),
        ({"limits": ["keys"]}, halfbyte.DTypeError, "^limits: expected a mapping"),
    ],
)
def test_wrong_modes_and_limits_are_named(
    opened: Callable[..., Any], options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(bundled.locate("tiny"), **options)
