# tests/python/test_demo.py
# Joining the demo model from its packages: once, whole, checked, under any interruption.
# SPDX-License-Identifier: Apache-2.0
"""Joining the demo model from its packages."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest
from halfbyte import demo

# Odd sizes: no piece ends where a read ends.
PIECES = [bytes([65 + i]) * (2_000_003 + i) for i in range(4)]
WHOLE = b"".join(PIECES)
DIGEST = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install four small packages in place of the real ones; their folder."""
    site = tmp_path / "site"
    names = []
    for i, piece in enumerate(PIECES):
        package = site / f"halfbyte_fake_part{i}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('package was run')")
        (package / "data" / f"piece{i}").write_bytes(piece)
        names.append(demo.Part(package.name, f"data/piece{i}"))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(demo, "PARTS", tuple(names))
    monkeypatch.setattr(demo, "SIZE", len(WHOLE))
    monkeypatch.setattr(demo, "SHA256", DIGEST)
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path / "cache"))
    return site


def cached() -> list[str]:
    """List the files in the cache, hidden ones too."""
    return sorted(path.name for path in demo.cache_dir().iterdir())


def made_elsewhere(site: Path) -> subprocess.Popen[bytes]:
    """Join the same packages in another process."""
    program = f"""
        import sys
        sys.path.insert(0, {str(site)!r})
        from halfbyte import demo
        parts = {json.dumps([list(part) for part in demo.PARTS])}
        demo.PARTS = tuple(demo.Part(*part) for part in parts)
        demo.SIZE, demo.SHA256 = {demo.SIZE}, {demo.SHA256!r}
        print(demo.model_path())
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE
    )


@pytest.mark.usefixtures("parts")
def test_the_pieces_are_joined_in_order_with_progress() -> None:
    seen: list[tuple[int, int]] = []
    path = demo.model_path(lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == WHOLE
    assert cached() == [demo.NAME, demo.NAME + ".checked"]
    assert seen == sorted(seen)
    assert len(seen) > len(PIECES)
    assert seen[-1] == (len(WHOLE), len(WHOLE))


@pytest.mark.usefixtures("parts")
def test_the_second_call_reads_nothing() -> None:
    path = demo.model_path()
    before = path.stat()
    seen: list[int] = []
    assert demo.cached_path() == path
    assert demo.model_path(lambda done, _total: seen.append(done)) == path
    assert seen == []
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


@pytest.mark.usefixtures("parts")
def test_a_changed_file_of_the_same_size_is_made_again() -> None:
    path = demo.model_path()
    with path.open("r+b") as file:
        file.write(b"?")
    os.utime(path, ns=(1, 1))
    assert demo.cached_path() is None
    assert demo.model_path().read_bytes() == WHOLE


def test_a_right_file_without_a_stamp_is_checked_and_kept(parts: Path) -> None:
    path = demo.model_path()
    (path.parent / (path.name + ".checked")).unlink()
    inode = path.stat().st_ino
    for piece in parts.glob("*/data/*"):
        piece.unlink()
    assert demo.model_path().stat().st_ino == inode
    assert demo.cached_path() == path


def test_wrong_data_leave_nothing_behind(parts: Path) -> None:
    piece = parts / "halfbyte_fake_part2" / "data" / "piece2"
    piece.write_bytes(b"x" * len(PIECES[2]))
    with pytest.raises(demo.DemoCorruptError, match=DIGEST) as caught:
        demo.model_path()
    assert cached() == []
    # The packages themselves: an index need not have halfbyte.
    packages = " ".join(f"halfbyte-fake-part{i}" for i in range(4))
    assert str(caught.value).endswith(f"--no-cache-dir {packages}")


@pytest.mark.parametrize("length", [-1, 1])
def test_a_piece_of_the_wrong_length_is_refused(parts: Path, length: int) -> None:
    piece = parts / "halfbyte_fake_part3" / "data" / "piece3"
    piece.write_bytes((PIECES[3] + b"D")[: len(PIECES[3]) + length])
    with pytest.raises(demo.DemoCorruptError):
        demo.model_path()
    assert cached() == []


def test_a_missing_package_is_named_with_the_remedy(parts: Path) -> None:
    (parts / "halfbyte_fake_part1" / "data" / "piece1").unlink()
    with pytest.raises(demo.DemoNotInstalledError, match="only partly") as caught:
        demo.model_path()
    assert "halfbyte-fake-part1" in str(caught.value)
    assert "halfbyte-fake-part2" not in str(caught.value)
    assert 'pip install "halfbyte[demo]"' in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("parts")
def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PARTS", (demo.Part("halfbyte_no_such", "data/x"),))
    with pytest.raises(demo.DemoNotInstalledError, match="is not installed"):
        demo.model_path()
    assert not demo.cache_dir().exists()


@pytest.mark.usefixtures("parts")
def test_a_full_disk_says_how_much_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _offset: int, _size: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    want = r"0 of 8,000,018 bytes were written, [\d,]+ are free \(HALFBYTE_CACHE"
    with pytest.raises(OSError, match=want) as caught:
        demo.model_path()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(demo.cache_dir() / demo.NAME)
    assert cached() == []


def test_a_size_limit_of_the_process_leaves_nothing(parts: Path) -> None:
    limit = f"ulimit -f 1000; exec {sys.executable} -c "
    program = (
        f"import sys; sys.path.insert(0, {str(parts)!r})\n"
        "from halfbyte import demo\n"
        f"demo.PARTS = tuple(demo.Part(*p) for p in {[list(p) for p in demo.PARTS]})\n"
        f"demo.SIZE, demo.SHA256 = {demo.SIZE}, '{DIGEST}'\n"
        "try: demo.model_path()\n"
        "except OSError as error: print(error.errno)\n"
    )
    done = subprocess.run(
        ["bash", "-c", limit + f'"{program}"'], capture_output=True, check=True
    )
    assert int(done.stdout) == errno.EFBIG
    assert cached() == []


def test_two_processes_at_once_both_get_the_file(parts: Path) -> None:
    for _ in range(3):
        running = [made_elsewhere(parts) for _ in range(3)]
        outputs = {process.communicate(timeout=60)[0] for process in running}
        assert [process.returncode for process in running] == [0, 0, 0]
        path = demo.cache_dir() / demo.NAME
        assert outputs == {f"{path}\n".encode()}
        assert path.read_bytes() == WHOLE
        assert cached() == [demo.NAME, demo.NAME + ".checked"]
        for file in demo.cache_dir().iterdir():
            file.unlink()


@pytest.mark.usefixtures("parts")
def test_an_interruption_leaves_nothing() -> None:
    def interrupt(done: int, _total: int) -> None:
        if done > len(PIECES[0]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.model_path(interrupt)
    assert cached() == []
    assert demo.model_path().read_bytes() == WHOLE


@pytest.mark.usefixtures("parts")
def test_what_a_killed_process_left_is_removed_and_no_more() -> None:
    demo.cache_dir().mkdir()
    killed, held = (
        demo.cache_dir() / f".{demo.NAME}.4711-{i:08x}.halfbyte-part" for i in (1, 2)
    )
    killed.write_bytes(b"half")
    with held.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert demo.model_path().read_bytes() == WHOLE
    assert not killed.exists()
    assert held.exists()


def test_the_cache_directory_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HALFBYTE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert demo.cache_dir() == tmp_path / ".cache" / "halfbyte"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert demo.cache_dir() == Path("/xdg/halfbyte")
    monkeypatch.setenv("HALFBYTE_CACHE", "/own")
    assert demo.cache_dir() == Path("/own")


def test_the_real_packages_make_the_pinned_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HALFBYTE_CACHE", str(tmp_path))
    try:
        path = demo.model_path()
    except demo.DemoNotInstalledError as error:
        pytest.skip(str(error))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest.startswith("a5fd3b62")
    assert digest.endswith("6818")
    assert path.stat().st_size == 253_113_024
