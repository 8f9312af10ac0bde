# python/halfbyte/draft.py
# What stands under a file's name is the old one or the new one, whole, whatever happens.
# SPDX-License-Identifier: Apache-2.0
"""Files that appear under their name when they are complete, and not before."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, final

from halfbyte.errors import ArgumentError

__all__ = ["Draft", "Leftover", "is_draft", "leftovers", "remove", "write_whole"]

# .model.gguf.4711-0badcafe.halfbyte-part: no reader looks for such a name, and it says
# whose process writes it.
_NAME = re.compile(r"\.(.+)\.(\d{1,10})-[0-9a-f]{8}\.halfbyte-part", re.DOTALL)
_LONGEST = 200  # bytes of a target's name that still leave room for the rest
_PIECE = 8 << 20  # bytes of one call of the system
_UNSYNCED = 256 << 20  # bytes that wait for the disk while more are made
_MAX_RECORDS = 64 << 20  # bytes of records that are read
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a file system says that has no such call.
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class Leftover(NamedTuple):
    """A draft whose process ended without finishing it."""

    path: Path
    target: str
    """Name of the file that it was to become."""
    pid: int
    """Of the process that wrote it."""
    bytes: int
    """That it takes on the disk."""


@final
class Draft:
    """A file of known size being written beside its target.

    Used as a context manager: `commit` puts it in the place of the target; leaving
    without that removes it, and the target is as it was. With a `key`, Ctrl-C leaves
    it, and so does a kill; the next draft of this target with the same key and size
    goes on with it. A draft with another key starts anew, and removes what an ended
    process left of this target.

    Parameters
    ----------
    path : Path
        The target. Symbolic links are followed, so they stay.
    size : int
        Bytes that the file will have. They are reserved at once.
    key : str
        One line that says what is written. With an empty one nothing is kept.

    Attributes
    ----------
    records : list of str
        Lines that `record` left in an earlier attempt; the bytes that they speak of may
        be lost all the same, if the machine went down.

    Raises
    ------
    OSError
        If there is no room, or no permission; it names the target.
    ArgumentError
        If the target is there and no regular file.
    """

    def __init__(self, path: Path, size: int, *, key: str = "") -> None:
        self.target = Path(os.path.realpath(path))
        self.size, self.records = size, list[str]()
        self._shown, self._lock = path, threading.Lock()
        self._written = self._synced = 0
        self._header = f"halfbyte draft 1: {size} {key}\n" if key else ""
        self._end = size  # of the file, with its records
        self._fd = -1
        adopted = False
        try:
            self._mode = self._final_mode()
            adopted = self._adopt()
            if not adopted:
                self._create()
            self._reserve()
            if self._end == size:
                self._append(self._header)
        except OSError as error:
            explained = self._explained(error)
            if self._fd >= 0:
                self.discard()
            raise explained from None
        except BaseException:  # Ctrl-C, as room for gigabytes takes a while
            if self._fd >= 0:
                (self.keep if adopted else self.discard)()
            raise

    # ---- writing

    def write(self, data: memoryview | bytes, offset: int) -> None:
        """Write bytes at a place. Any number of threads may do so at a time."""
        try:
            self._write(data, offset)
            with self._lock:
                self._written += len(data)
                is_due = self._written - self._synced >= _UNSYNCED
                if is_due:
                    self._synced = self._written
            if is_due:  # by one thread, while the others go on
                os.fsync(self._fd)
        except OSError as error:
            raise self._explained(error) from None

    def read(self, out: memoryview, offset: int) -> bool:
        """Fill `out` with what stands at a place; False if the file ends before."""
        return os.preadv(self._fd, [out], offset) == len(out)

    def record(self, line: str) -> None:
        """Keep a line for a later attempt. By one thread."""
        self._append(line + "\n")

    def commit(self, check: Callable[[Path], object]) -> None:
        """Put the file under its name.

        Parameters
        ----------
        check : callable
            Opens the finished file and raises if it is not sound.
        """
        try:
            os.fsync(self._fd)  # may take long; up to here, Ctrl-C loses nothing
            os.ftruncate(self._fd, self.size)
            os.fsync(self._fd)
            # Network file systems report what could not be stored here. The lock stays
            # with the other descriptor: until the file has its name, it has an owner.
            os.close(os.dup(self._fd))
            check(self._part)
            os.fchmod(self._fd, self._mode)
            self._part.replace(self.target)
        except OSError as error:
            raise self._explained(error) from None
        self._close()
        _sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove it."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # what went wrong first is to be told
                self._part.unlink()
            self._close()

    def keep(self) -> None:
        """Leave it for a later attempt."""
        self._close()

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._header and isinstance(error, KeyboardInterrupt):
            self.keep()
        else:
            self.discard()

    # ---- how

    def _final_mode(self) -> int:
        """Permissions of the target, or those of a new file."""
        try:
            there = self.target.lstat()
        except FileNotFoundError:
            mask = os.umask(0o077)  # cannot be read without being set
            os.umask(mask)
            return 0o666 & ~mask
        if stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(
                errno.EISDIR, os.strerror(errno.EISDIR), str(self._shown)
            )
        if stat.S_ISLNK(there.st_mode):  # what is left of a loop of links
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(self._shown))
        if not stat.S_ISREG(there.st_mode):
            raise ArgumentError(f"{self._shown}: expected a regular file or none")
        return stat.S_IMODE(there.st_mode)

    def _adopt(self) -> bool:
        """Go on with what an ended process left; remove what cannot be gone on with."""
        for found in leftovers(self.target.parent):
            if found.target != _stem(self.target):
                continue
            fd = _owned(found.path)
            if fd is None:
                continue
            self._fd, self._part = fd, found.path
            if self._takes_over():
                part = self._new_name()
                self._part.rename(part)  # the name tells the owner
                self._part = part
                return True
            self.discard()
        return False

    def _takes_over(self) -> bool:
        """Read the records of an earlier draft; False if it is of something else."""
        text = os.pread(self._fd, _MAX_RECORDS, self.size).decode("ascii", "replace")
        if not self._header or not text.startswith(self._header):
            return False
        # A line that does not end was being written.
        whole = text[: text.rindex("\n") + 1]
        self.records = whole.splitlines()[1:]
        self._end = self.size + len(whole)
        return True

    def _create(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            part = self._new_name()
            os.close(os.open(part, flags, 0o600))
            # Before it is locked, somebody may take it for a leftover.
            if (fd := _owned(part, wait=True)) is not None:
                self._fd, self._part = fd, part
                return

    def _new_name(self) -> Path:
        name = f".{_stem(self.target)}.{os.getpid()}-{secrets.token_hex(4)}"
        return self.target.with_name(f"{name}.halfbyte-part")

    def _reserve(self) -> None:
        """Have the disk full now rather than in an hour."""
        if not self.size:
            return
        try:
            os.posix_fallocate(self._fd, 0, self.size)
        except AttributeError:  # no such call on this system
            self._require_room()
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
            self._require_room()

    def _require_room(self) -> None:
        if _free(self.target.parent) < self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _append(self, text: str) -> None:
        """Write to the records, behind the file's own bytes."""
        if not self._header:
            return
        data = text.encode("ascii")
        try:
            self._write(data, self._end)
        except OSError:  # no room: the file itself has its own
            self._header = ""
        self._end += len(data)

    def _write(self, data: memoryview | bytes, offset: int) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            count = os.pwrite(self._fd, rest[:_PIECE], offset)
            if count <= 0:
                raise OSError(errno.EIO, "wrote nothing")
            rest, offset = rest[count:], offset + count

    def _explained(self, error: OSError) -> OSError:
        """Error with the target's name, and how far it went."""
        if error.errno is None or error.filename == str(self._shown):
            return error  # one of ours, which says all itself
        text = (
            f"{error.strerror}: {self._written:,} of {self.size:,} bytes were written"
        )
        if error.errno in _FULL:
            text += f", {_free(self.target.parent):,} are free"
        return OSError(error.errno, text, str(self._shown))

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # `commit` closed the file once before
                os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file that is there whole or, after a failure, as it was.

    Parameters
    ----------
    path : Path
    data : bytes

    Raises
    ------
    OSError, ArgumentError
        As by `Draft`.
    """
    with Draft(path, len(data)) as draft:
        draft.write(data, 0)
        draft.commit(Path.stat)


def is_draft(path: Path) -> bool:
    """Whether a file is a draft, by its name."""
    return _NAME.fullmatch(path.name) is not None


def leftovers(folder: Path) -> list[Leftover]:
    """Drafts in a folder whose processes have ended.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    list of Leftover
        By name. Those of a living process are never among them; none of a folder that
        cannot be read.
    """
    found = []
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []  # writing there will say why
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if match is None or (fd := _owned(path)) is None:
            continue
        size = os.fstat(fd).st_blocks * 512
        os.close(fd)
        found.append(Leftover(path, match[1], int(match[2]), size))
    return found


def remove(leftover: Leftover) -> bool:
    """Delete a leftover, unless somebody has gone on with it.

    Parameters
    ----------
    leftover : Leftover
        One of `leftovers`.

    Returns
    -------
    bool
        Whether it was deleted.

    Raises
    ------
    OSError
        If its folder may not be written to.
    """
    fd = _owned(leftover.path)
    if fd is None:
        return False
    leftover.path.unlink(missing_ok=True)
    os.close(fd)
    return True


def _stem(target: Path) -> str:
    """Name of the target, or something short in its stead."""
    raw = os.fsencode(target.name)
    return target.name if len(raw) <= _LONGEST else hashlib.sha256(raw).hexdigest()


def _owned(path: Path, *, wait: bool = False) -> int | None:
    """Descriptor of a draft that is now this process's; None if it is another one's.

    The lock goes when its process does, however that ends; a number of a process may
    by then be another one's, or be unknown in this container.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        owned = True
    except OSError as error:
        owned = error.errno in _UNKNOWN and not _alive(path)
    try:
        there = path.lstat()
        owned = owned and os.path.samestat(there, os.fstat(fd))
        # Another user could go on writing to a file that is called like ours.
        owned = owned and stat.S_ISREG(there.st_mode) and there.st_uid == os.geteuid()
    except OSError:
        owned = False
    if not owned:
        os.close(fd)
    return fd if owned else None


def _alive(path: Path) -> bool:
    """Whether the process that a draft is named after is there, and not this one."""
    match = _NAME.fullmatch(path.name)
    pid = int(match[2]) if match else 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return pid != os.getpid()


def _free(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def _sync_folder(folder: Path) -> None:
    """Make the new name last."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        os.close(fd)
