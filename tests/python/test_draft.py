# tests/python/test_draft.py
# SPDX-License-Identifier: Apache-2.0
"""A file that is written is the old one or the new one, whole, whatever happens.

Names in brackets are the rules of writing that a test stands for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from halfbyte import draft
from halfbyte.draft import Draft, leftovers
from halfbyte.errors import ArgumentError

OLD, NEW = b"the old file" * 100, bytes(range(256)) * 1024
KEY = "of this source"

# Writes half of a file, says so, and waits to be killed.
HALF = """
import sys, time
from pathlib import Path
from halfbyte.draft import Draft
new = bytes(range(256)) * 1024
with Draft(Path(sys.argv[1]), len(new), key=sys.argv[2]) as it:
    it.write(new[: len(new) // 2], 0)
    it.record("first half")
    print("begun", flush=True)
    time.sleep(600)
"""


def write(path: Path, data: bytes = NEW, *, key: str = "") -> list[str]:
    """Write a file in two pieces; what an earlier attempt recorded."""
    with Draft(path, len(data), key=key) as it:
        middle = len(data) // 2
        it.write(data[middle:], middle)
        it.write(data[:middle], 0)
        it.commit(lambda part: part.stat())
        return it.records


def broken_off(path: Path, error: type[BaseException], *, key: str = "") -> None:
    """Begin to write a file, and fail."""
    with Draft(path, len(NEW), key=key) as it:
        it.write(NEW[:10], 0)
        it.record("one")
        raise error


def test_ctrl_c_while_room_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupt)
    for key in ("", "a key"):
        with pytest.raises(KeyboardInterrupt):
            Draft(tmp_path / "out.gguf", 100, key=key)
        assert names(tmp_path) == []


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(".*.halfbyte-part"))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Make a folder with nothing but an old file."""
    path = tmp_path / "out.gguf"
    path.write_bytes(OLD)
    return path


def begun(script: str, *args: object) -> subprocess.Popen[bytes]:
    """Start a process, and wait for its first line."""
    line = [sys.executable, "-c", script, *map(str, args)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == b"begun\n"
    return process


@pytest.fixture
def killed(old: Path) -> Path:
    """Leave a half of a new file beside the old one."""
    process = begun(HALF, old, KEY)
    process.kill()
    process.wait()
    return old


# ---- what is there in the end


def test_a_file_is_replaced(old: Path) -> None:
    old.chmod(0o640)
    write(old)
    assert old.read_bytes() == NEW
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert names(old.parent) == ["out.gguf"]


def test_a_new_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert os.umask(mask) == mask


def test_nobody_else_reads_an_unfinished_file(old: Path) -> None:
    old.chmod(0o644)
    with Draft(old, len(NEW)) as it:
        (part,) = parts(old.parent)
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        assert f".{os.getpid()}-" in part.name
        assert part.stat().st_size == it.size


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real.gguf", tmp_path / "link.gguf"
    real.write_bytes(OLD)
    link.symlink_to("there/real.gguf")
    write(link)
    assert link.is_symlink()
    assert real.read_bytes() == NEW
    link.unlink()
    link.symlink_to("there/other.gguf")  # leads to nothing yet
    write(link)
    assert (tmp_path / "there" / "other.gguf").read_bytes() == NEW


def test_no_file_and_the_longest_name(tmp_path: Path) -> None:
    write(tmp_path / ("n" * 255))
    write(tmp_path / "empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""
    assert sorted(map(len, names(tmp_path))) == [5, 255]


def test_a_failed_check_keeps_the_old_file(old: Path) -> None:
    def refuse(part: Path) -> None:
        assert part.read_bytes() == bytes(len(NEW))
        raise ValueError("not sound")

    with pytest.raises(ValueError, match="not sound"), Draft(old, len(NEW)) as it:
        it.commit(refuse)
    assert old.read_bytes() == OLD
    assert names(old.parent) == ["out.gguf"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failure_leaves_nothing(old: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        broken_off(old, error)
    assert old.read_bytes() == OLD
    assert names(old.parent) == ["out.gguf"]


def test_two_at_a_time_do_not_mix(old: Path) -> None:
    other = NEW[::-1]
    with Draft(old, len(NEW), key=KEY) as one, Draft(old, len(NEW), key=KEY) as two:
        assert len(parts(old.parent)) == 2
        for it, data in ((one, NEW), (two, other)):
            it.write(data, 0)
        one.commit(lambda part: part.stat())
        assert old.read_bytes() == NEW
        two.commit(lambda part: part.stat())
    assert old.read_bytes() == other
    assert names(old.parent) == ["out.gguf"]


def test_many_threads_write(old: Path) -> None:
    with Draft(old, len(NEW)) as it:
        step = len(NEW) // 8
        threads = [
            threading.Thread(target=it.write, args=(NEW[i * step :][:step], i * step))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        it.commit(lambda part: part.stat())
    assert old.read_bytes() == NEW


# ---- what may go wrong


def failing(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int, *, after: int = 0
) -> None:
    """Have a call of the system fail, the first `after` times excepted."""
    real: Callable[..., Any] = getattr(os, call)
    calls = iter(range(1 << 30))

    def fake(*args: Any) -> Any:
        if next(calls) < after:
            return real(*args)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(draft.os, call, fake)


@pytest.mark.parametrize(
    ("call", "number", "after", "written"),
    [
        ("posix_fallocate", errno.ENOSPC, 0, 0),
        ("posix_fallocate", errno.EFBIG, 0, 0),
        ("pwrite", errno.ENOSPC, 1, len(NEW) // 2),
        ("pwrite", errno.EDQUOT, 1, len(NEW) // 2),
        ("pwrite", errno.EIO, 0, 0),
        ("pwrite", errno.EFBIG, 0, 0),
        ("fsync", errno.EIO, 0, len(NEW)),
        ("fsync", errno.ENOSPC, 1, len(NEW)),
        ("ftruncate", errno.EIO, 0, len(NEW)),
        ("close", errno.EDQUOT, 1, len(NEW)),
    ],
)
def test_a_failing_disk(
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    after: int,
    written: int,
) -> None:
    """[W-1, W-2, W-4] One line: the file, what was written, what was needed."""
    failing(monkeypatch, call, number, after=after)
    with pytest.raises(OSError, match="bytes were written") as caught:
        write(old)
    monkeypatch.undo()
    assert caught.value.errno == number
    assert caught.value.filename == str(old)
    said = caught.value.strerror
    assert said.startswith(os.strerror(number))
    assert f": {written:,} of {len(NEW):,} bytes were written" in said
    assert ("are free" in said) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert old.read_bytes() == OLD
    assert names(old.parent) == ["out.gguf"]


def test_short_and_empty_writes(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def little(fd: int, data: memoryview, offset: int) -> int:
        return real(fd, data[:1000], offset)

    monkeypatch.setattr(draft.os, "pwrite", little)
    write(old)
    assert old.read_bytes() == NEW
    monkeypatch.setattr(draft.os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        write(old)
    assert names(old.parent) == ["out.gguf"]


def test_the_disk_is_kept_busy(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written goes to the disk as it comes, and says if it does not."""
    monkeypatch.setattr(draft, "_UNSYNCED", 1000)
    synced, real = [], os.fsync
    with Draft(old, len(NEW)) as it:
        monkeypatch.setattr(draft.os, "fsync", lambda fd: synced.append(real(fd)))
        for at in range(0, 6000, 300):
            it.write(NEW[at : at + 300], at)
        assert len(synced) == 6000 // 1200  # every fourth
        failing(monkeypatch, "fsync", errno.EIO)
        it.write(NEW[:999], 0)
        with pytest.raises(OSError, match=f"error: 7,000 of {len(NEW):,} bytes"):
            it.write(NEW[:1], 0)
        monkeypatch.undo()
    assert old.read_bytes() == OLD
    assert names(old.parent) == ["out.gguf"]


def test_signals_do_not_disturb(old: Path) -> None:
    """[W-4: EINTR] A timer that fires all the time."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(20):
            write(old)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert old.read_bytes() == NEW


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_file_systems_that_reserve_nothing(
    old: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing(monkeypatch, "posix_fallocate", number)
    write(old)
    assert old.read_bytes() == NEW
    monkeypatch.setattr(draft, "_free", lambda _: len(NEW) - 1)
    with pytest.raises(OSError, match=f"{len(NEW) - 1:,} are free") as caught:
        write(old)
    assert caught.value.errno == errno.ENOSPC
    assert names(old.parent) == ["out.gguf"]


def limited(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)


def test_a_limit_on_files(old: Path) -> None:
    """[W-4: EFBIG] The real thing, of a shell's `ulimit -f`."""
    script = """
import resource, sys
from pathlib import Path
from halfbyte.draft import Draft
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Draft(Path(sys.argv[1]), 262_144)
except OSError as error:
    print(error.errno, error.filename, error.strerror)
"""
    done = limited(script, old)
    want = f"{errno.EFBIG} {old} File too large: 0 of 262,144 bytes were written\n"
    assert (done.stdout, done.stderr) == (want, "")
    assert names(old.parent) == ["out.gguf"]


def test_where_nothing_may_be_written(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from halfbyte.draft import Draft
if os.getuid() == 0:
    os.setuid(65534)
try:
    Draft(Path(sys.argv[1]), 100)
except OSError as error:
    print(error.errno, error.filename, error.strerror)
"""
    # Not below pytest's folders, which another user cannot even look into.
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        Path(folder).chmod(0o555)
        done = limited(script, target)
    want = f"{errno.EACCES} {target} Permission denied: 0 of 100 bytes were written\n"
    assert (done.stdout, done.stderr) == (want, "")
    target = Path("/proc/out")  # a file system where nothing can be made
    assert limited(script, target).stdout.startswith(f"{errno.ENOENT} /proc/out ")
    gone = tmp_path / "gone" / "out"
    with pytest.raises(FileNotFoundError) as caught:
        Draft(gone, 100)
    assert caught.value.filename == str(gone)


def test_read_only_file_systems(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[W-4: EROFS]"""
    failing(monkeypatch, "open", errno.EROFS)
    with pytest.raises(OSError, match="Read-only file system: 0 of") as caught:
        Draft(old, 100)
    assert caught.value.filename == str(old)


def test_targets_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Draft(tmp_path, 100)
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as caught:
        Draft(loop, 100)
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(ArgumentError, match="/dev/null: expected a regular file"):
        Draft(Path("/dev/null"), 100)
    assert names(tmp_path) == ["loop"]


# ---- what a killed process leaves


def test_a_leftover_is_recognised(killed: Path) -> None:
    """[W-2]"""
    assert killed.read_bytes() == OLD
    (found,) = leftovers(killed.parent)
    assert found.target == "out.gguf"
    assert found.path.name.startswith(f".out.gguf.{found.pid}-")
    assert found.bytes >= len(NEW)
    assert draft.remove(found)
    assert not draft.remove(found)
    assert names(killed.parent) == ["out.gguf"]


def test_the_next_attempt_goes_on(killed: Path) -> None:
    with Draft(killed, len(NEW), key=KEY) as it:
        assert it.records == ["first half"]
        (part,) = parts(killed.parent)
        assert f".{os.getpid()}-" in part.name
        found = bytearray(len(NEW) // 2)
        assert it.read(memoryview(found), 0)
        assert found == NEW[: len(found)]
        it.write(NEW[len(found) :], len(found))
        it.commit(lambda part: part.stat())
    assert killed.read_bytes() == NEW
    assert names(killed.parent) == ["out.gguf"]


@pytest.mark.parametrize("key", ["of another", "", KEY[:-1], KEY + "s"])
def test_another_attempt_starts_anew(killed: Path, key: str) -> None:
    assert write(killed, key=key) == []
    assert killed.read_bytes() == NEW
    assert names(killed.parent) == ["out.gguf"]


def test_another_size_starts_anew(killed: Path) -> None:
    assert write(killed, NEW[:-1], key=KEY) == []
    assert killed.read_bytes() == NEW[:-1]


def test_a_line_cut_off_is_none(killed: Path) -> None:
    (part,) = parts(killed.parent)
    with part.open("ab") as file:
        file.write(b"second h")
    with Draft(killed, len(NEW), key=KEY) as it:
        assert it.records == ["first half"]
        it.record("another")
        it.keep()
    with Draft(killed, len(NEW), key=KEY) as it:
        assert it.records == ["first half", "another"]


def test_records_need_no_room(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that holds the file and no more."""
    real = os.pwrite

    def fake(fd: int, data: memoryview, offset: int) -> int:
        if offset >= len(NEW):
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data, offset)

    monkeypatch.setattr(draft.os, "pwrite", fake)
    with Draft(killed, len(NEW), key=KEY) as it:
        it.record("no room")
        it.write(NEW, 0)
        it.commit(lambda part: part.stat())
    assert killed.read_bytes() == NEW


def test_ctrl_c_leaves_what_can_be_gone_on_with(old: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        broken_off(old, KeyboardInterrupt, key=KEY)
    assert [found.target for found in leftovers(old.parent)] == ["out.gguf"]
    assert write(old, key=KEY) == ["one"]


def test_a_living_owner_is_left_alone(old: Path) -> None:
    process = begun(HALF, old, KEY)
    try:
        assert leftovers(old.parent) == []
        (part,) = parts(old.parent)
        entry = draft.Leftover(part, "out.gguf", process.pid, 0)
        assert not draft.remove(entry)
        assert write(old, key=KEY) == []
        assert part.exists()
    finally:
        process.kill()
        process.wait()
    assert [found.path for found in leftovers(old.parent)] == [part]


def test_owners_where_there_are_no_locks(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number in the name has to do."""
    process = begun(HALF, old, KEY)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert leftovers(old.parent) == []
    process.kill()
    process.wait()
    assert len(leftovers(old.parent)) == 1
    assert write(old, key=KEY) == ["first half"]


def test_traps_in_the_folder(old: Path, tmp_path: Path) -> None:
    """Names like ours that are no files of ours."""
    link, folder, pipe = (
        tmp_path / f".out.gguf.1-0000000{i}.halfbyte-part" for i in range(3)
    )
    link.symlink_to(old)
    folder.mkdir()
    os.mkfifo(pipe)
    mine = tmp_path / "my.halfbyte-part"
    mine.write_bytes(b"mine")
    count = 5
    if os.getuid() == 0:  # a file of another user, who could go on writing to it
        theirs = tmp_path / ".out.gguf.1-00000003.halfbyte-part"
        theirs.write_bytes(
            bytes(len(NEW)) + f"halfbyte draft 1: {len(NEW)} k\n".encode()
        )
        os.chown(theirs, 65534, 65534)
        count = 6
    assert leftovers(tmp_path) == []
    write(old, key="k")
    assert old.read_bytes() == NEW
    assert mine.exists()
    assert len(names(tmp_path)) == count


def test_ten_kills(old: Path) -> None:
    """[P4] At whatever moment: the old file whole, or the new one."""
    script = """
import sys, time
from pathlib import Path
from halfbyte.draft import Draft
print("begun", flush=True)
while True:
    for seed in range(1, 200):
        data = bytes([seed]) * 3_000_000
        with Draft(Path(sys.argv[1]), len(data), key=str(seed)) as it:
            for at in range(0, len(data), 100_000):
                it.write(data[at : at + 100_000], at)
                it.record(str(at))
            it.commit(lambda part: part.stat())
"""
    seen = set()
    for i in range(10):
        process = begun(script, old)
        time.sleep(0.003 + 0.037 * i)
        process.kill()
        process.wait()
        data = old.read_bytes()
        assert data == OLD or (len(data) == 3_000_000 and len(set(data)) == 1)
        seen.add(data[:1])
        assert len(parts(old.parent)) <= 1
    assert len(seen) > 1
