# python/halfbyte/hub.py
# From the name of a Hugging Face repository to a file or folder of its cache. What
# huggingface_hub (the extra `hub`) is asked for: the listing, the rights, the cache. A
# file's bytes are fetched here, because it starts anew after an interruption.
# SPDX-License-Identifier: Apache-2.0
"""Models from the Hugging Face Hub, kept in the cache that all its tools share."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import importlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from halfbyte.choice import (
    gguf_files,
    is_encoder_tensor,
    is_gguf_model,
    listed,
    nearest,
    shown,
)
from halfbyte.errors import (
    ArgumentError,
    FormatError,
    MissingExtraError,
    TruncatedFileError,
)

__all__ = ["Repository", "fetch", "parse"]

Progress = Callable[[int, int], None]

# What `load` reads of a folder beside the weights. Nothing else is fetched.
_SIDECARS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 256 << 20  # as io/limits.h has it for a sidecar

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(
    rf"(?P<id>{_PART}/{_PART})(?:/(?P<file>[^@:\s]+\.gguf))?"
    r"(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./-]*))?(?::(?P<type>[A-Za-z0-9_.-]+))?"
)

_PIECE = 1 << 20
_ATTEMPTS = 5  # of a connection that brings nothing
_PAUSE_SECONDS = 1.0


class Repository(NamedTuple):
    """What a name asks for.

    Attributes
    ----------
    id : str
        ``owner/repo``.
    revision : str or None
        A branch, tag or commit.
    wanted : str or None
        The GGUF file, or a type in its name.
    """

    id: str
    revision: str | None
    wanted: str | None


def parse(name: str) -> Repository | None:
    """Read a repository's name.

    Parameters
    ----------
    name : str
        ``owner/repo``, ``owner/repo@revision``, ``owner/repo:Q4_0``,
        ``owner/repo/file.gguf``.

    Returns
    -------
    Repository or None
        None if it is no such name.
    """
    found = _NAME.fullmatch(name)
    if found is None or (found["file"] and found["type"]):
        return None
    return Repository(found["id"], found["revision"], found["file"] or found["type"])


def fetch(
    repository: Repository,
    *,
    local_files_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fetch what `load` needs of a repository, and no more.

    What the cache has already is not fetched again, and what was interrupted goes on
    where it ended. Without a connection the cache has to do.

    Parameters
    ----------
    repository : Repository
    local_files_only : bool
        Ask no server. ``HF_HUB_OFFLINE=1`` does the same.
    progress : callable, optional
        Called with the bytes there are and those there will be. Without it a terminal
        gets the bar of huggingface_hub.

    Returns
    -------
    Path
        A folder with config.json and safetensors, or a GGUF file (the first shard).

    Raises
    ------
    MissingExtraError
        If the extra ``hub`` is not installed.
    FileNotFoundError
        If there is no such repository, revision or file, there or in the cache.
    PermissionError
        If the repository is gated.
    ArgumentError
        If there are several GGUF files and the name tells none, or the Hub allows no
        such name.
    ConnectionError
        If the server cannot be reached, or the connection breaks off.
    FormatError
        If a file is not what the listing says; `TruncatedFileError` if it is shorter.
    """
    hub = _library()
    try:
        hub.utils.validate_repo_id(repository.id)
    except ValueError as error:
        raise ArgumentError(f"{repository.id}: {_brief(error)}") from None
    if local_files_only or hub.constants.HF_HUB_OFFLINE:
        why = "local_files_only" if local_files_only else "HF_HUB_OFFLINE"
        return _cached(hub, repository, f"{why} forbids to fetch it")
    try:
        listing = _listing(hub, repository)
    except _UnreachableError as error:
        # As for the Hub's other tools: the last that was fetched is better than nothing.
        return _cached(hub, repository, str(error), ConnectionError)
    return _Download(hub, repository, listing, progress).run()


class _UnreachableError(Exception):
    """The server does not answer, or not in a way that helps."""


def _library() -> Any:
    """The module `huggingface_hub`, which is optional and takes a while to import."""
    try:
        hub = importlib.import_module("huggingface_hub")
        for name in ("constants", "errors", "utils"):
            importlib.import_module(f"huggingface_hub.{name}")
    except ImportError as error:
        raise MissingExtraError(
            "models from the Hugging Face Hub need huggingface_hub "
            f'({error}): run pip install "halfbyte[hub]"'
        ) from None
    return hub


# ---- what there is


class _File(NamedTuple):
    """A file of a repository."""

    size: int
    digest: str  # SHA-256 if it is large, else git's SHA-1: how the cache names it


class _Listing(NamedTuple):
    """A repository at one commit."""

    commit: str
    files: dict[str, _File]


def _listing(hub: Any, repository: Repository) -> _Listing:
    """Ask the server which files there are."""
    where, endpoint = repository.id, hub.constants.ENDPOINT
    try:
        info = hub.HfApi().model_info(
            where,
            revision=repository.revision,
            files_metadata=True,
            timeout=hub.constants.HF_HUB_ETAG_TIMEOUT,
        )
        return _Listing(str(info.sha), dict(map(_file, info.siblings)))
    except hub.errors.GatedRepoError:
        raise PermissionError(
            f"{where}: its owner gives access on request: accept the terms at "
            f"{endpoint}/{where}, then run hf auth login"
        ) from None
    except hub.errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{where}: no such file here, and no such repository at {endpoint} (for a "
            f"private one run hf auth login){_alike(hub, where)}"
        ) from None
    except hub.errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"{where}: no revision {repository.revision!r} at {endpoint}"
        ) from None
    except (OSError, hub.errors.HTTPError) as error:
        raise _UnreachableError(f"{endpoint}: {_brief(error)}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _UnreachableError(f"{endpoint}: no answer of a hub") from None


def _file(entry: Any) -> tuple[str, _File]:
    """Name and facts of one entry of a listing, which is hostile until checked."""
    name, digest = entry.rfilename, entry.lfs.sha256 if entry.lfs else entry.blob_id
    # Both become paths in the cache.
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest) or entry.size < 0:
        raise ValueError
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError
    return name, _File(entry.size, digest)


def _alike(hub: Any, id: str) -> str:
    """Repositories in the cache whose name is like `id`, as the end of a message."""
    folders = Path(hub.constants.HF_HUB_CACHE).glob("models--*--*")
    names = (folder.name.removeprefix("models--") for folder in sorted(folders))
    known = [name.replace("--", "/", 1) for name in names]
    close = nearest(id, known)
    return close if "did you mean" in close else ""


def _brief(error: BaseException) -> str:
    """First line of an error of the library, which often has many."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ---- what of it is needed


def _needed(
    repository: Repository, names: set[str], index: Callable[[], Path]
) -> list[str]:
    """Files that `load` reads; a GGUF file or its first shard comes first.

    `index` fetches the index of a model in several files, and gives its path.
    """
    where = repository.id
    root = {name for name in names if "/" not in name}
    tensors = sorted(name for name in root if name.endswith(".safetensors"))
    if repository.wanted or "config.json" not in root or not tensors:
        if not repository.wanted and not any(map(is_gguf_model, names)):
            raise FileNotFoundError(
                f"{where}: neither GGUF files nor config.json with safetensors"
                f"{listed(names)}"
            )
        return gguf_files(names, repository.wanted, where)
    sidecars = [name for name in _SIDECARS if name in root]
    if _WEIGHTS in root:
        return [*sidecars, _WEIGHTS]
    if _INDEX in root:
        shards = _shards(index())
        if missing := sorted(shards - root):
            raise FileNotFoundError(f"{where}: no shard {shown(missing[0])}")
        return [*sidecars, _INDEX, *sorted(shards)]
    if len(tensors) > 1:
        raise FileNotFoundError(f"{where}: no {_WEIGHTS}{listed(tensors)}")
    return [*sidecars, *tensors]


def _shards(index: Path) -> set[str]:
    """Files of an index that hold some of the text model. It is hostile until checked."""
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError
        places = json.loads(index.read_bytes())["weight_map"].items()
        every = {shard for _, shard in places}
        if not every or not all(isinstance(shard, str) for shard in every):
            raise ValueError
        text = {shard for name, shard in places if not is_encoder_tensor(name)}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise FormatError(
            f"{index}: index: no weight_map of tensors to files [IDX_WEIGHT_MAP]",
            path=str(index),
            kind="index",
            code="IDX_WEIGHT_MAP",
        ) from None
    return text or every


# ---- from the cache


def _cached(
    hub: Any,
    repository: Repository,
    why: str,
    kind: type[OSError] = FileNotFoundError,
) -> Path:
    """What the cache has of a repository, if that is all it takes."""
    where = repository.id
    try:
        folder = Path(
            hub.snapshot_download(
                where,
                revision=repository.revision,
                local_files_only=True,
                allow_patterns=[],
            )
        )
    except hub.errors.LocalEntryNotFoundError:
        at = f"@{repository.revision}" if repository.revision else ""
        raise kind(
            f"{where}{at}: not in {hub.constants.HF_HUB_CACHE}, and {why}"
            f"{_alike(hub, where)}"
        ) from None
    names = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    }
    try:
        needed = _needed(repository, names, lambda: folder / _INDEX)
    except FileNotFoundError as error:
        raise kind(f"{error}; {folder} has no more, and {why}") from None
    return _result(folder, needed)


def _result(folder: Path, needed: list[str]) -> Path:
    return folder / needed[0] if needed[0].endswith(".gguf") else folder


# ---- from the server


class _Download:
    """Brings one model into the cache."""

    def __init__(
        self,
        hub: Any,
        repository: Repository,
        listing: _Listing,
        progress: Progress | None,
    ) -> None:
        self._hub, self._repository, self._listing = hub, repository, listing
        self._progress = progress
        cache = Path(hub.constants.HF_HUB_CACHE)
        name = f"models--{repository.id.replace('/', '--')}"
        self._blobs, self._locks = cache / name / "blobs", cache / ".locks" / name

    def run(self) -> Path:
        """Fetch, link, check."""
        files = self._listing.files
        needed = _needed(self._repository, set(files), self._index)
        with self._meter(sum(files[name].size for name in needed)) as add:
            for name in needed:
                self._complete(name, add)
        folder = self._linked(needed)
        if folder.name == self._listing.commit:
            for name in needed:
                self._check_size(name, folder / name)
        else:
            self._check_moved(folder, needed)
        return _result(folder, needed)

    def _check_moved(self, folder: Path, needed: list[str]) -> None:
        """Make sure that the branch is at another commit by now.

        huggingface_hub also gives what it had before if the server does not answer.
        """
        where = self._repository.id
        try:
            now = _listing(self._hub, self._repository).commit
        except _UnreachableError as error:
            raise ConnectionError(
                f"{where}: fetched, but not linked: {error}"
            ) from None
        if now != folder.name or not all((folder / name).is_file() for name in needed):
            raise ConnectionError(f"{where}: fetched, but not linked: try again")

    def _index(self) -> Path:
        self._complete(_INDEX, lambda _size: None)
        return self._blobs / self._listing.files[_INDEX].digest

    def _linked(self, needed: list[str]) -> Path:
        """Let huggingface_hub make the snapshot of the blobs that are there.

        It would fetch one that is not, and notes which commit a branch is at.
        """
        hub = self._hub

        class Silent(hub.utils.tqdm):  # type: ignore[misc, name-defined]
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **(options | {"disable": True}))

        try:
            return Path(
                hub.snapshot_download(
                    self._repository.id,
                    revision=self._repository.revision,
                    allow_patterns=[glob.escape(name) for name in needed],
                    tqdm_class=Silent,
                )
            )
        except (OSError, hub.errors.HTTPError) as error:
            raise ConnectionError(f"{self._repository.id}: {_brief(error)}") from None

    def _check_size(self, name: str, path: Path) -> None:
        found, expected = path.stat().st_size, self._listing.files[name].size
        if found != expected:
            raise self._unsound(
                TruncatedFileError if found < expected else FormatError,
                path,
                f"{found} bytes; expected {expected}",
                "HUB_SIZE",
            )

    def _complete(self, name: str, add: Callable[[int], None]) -> None:
        """Have a file's blob in the cache, whole, going on with what is there of it."""
        file = self._listing.files[name]
        blob = self._blobs / file.digest
        part = blob.with_name(f"{file.digest}.halfbyte.incomplete")
        for folder in (self._blobs, self._locks):
            folder.mkdir(parents=True, exist_ok=True)
        with self._hub.utils.WeakFileLock(self._locks / f"{part.name}.lock"):
            if blob.exists():
                add(file.size)
                return
            try:
                self._append(name, part, add)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OSError(
                    error.errno,
                    f"{error.strerror}: {name} has {file.size} bytes (HF_HOME moves the "
                    "cache)",
                    str(part),
                ) from None
            if (found := _digest(part, file)) != file.digest:
                part.unlink()
                what = f"digest {found}; expected {file.digest}"
                raise self._unsound(FormatError, blob, what, "HUB_DIGEST")
            part.replace(blob)

    def _append(self, name: str, part: Path, add: Callable[[int], None]) -> None:
        """Fetch what `part` lacks, again and again as long as something comes."""
        file, failures = self._listing.files[name], 0
        part.touch()
        if part.stat().st_size > file.size:
            part.write_bytes(b"")
        add(part.stat().st_size)
        while (before := part.stat().st_size) < file.size:
            try:
                self._stream(name, part, add)
            except self._hub.errors.HTTPError as error:
                now = part.stat().st_size
                failures = 0 if now > before else failures + 1
                final = isinstance(error, self._hub.errors.HfHubHTTPError)
                if final or failures == _ATTEMPTS:
                    raise ConnectionError(
                        f"{self._repository.id}/{name}: broke off at byte {now} of "
                        f"{file.size} ({_brief(error)}) - the next call goes on there"
                    ) from None
                time.sleep(_PAUSE_SECONDS)
            else:
                if (now := part.stat().st_size) != file.size:
                    kind = TruncatedFileError if now < file.size else FormatError
                    what = f"the server sent {now} bytes; expected {file.size}"
                    raise self._unsound(kind, part, what, "HUB_SIZE")

    def _stream(self, name: str, part: Path, add: Callable[[int], None]) -> None:
        hub, have = self._hub, part.stat().st_size
        url = hub.hf_hub_url(self._repository.id, name, revision=self._listing.commit)
        headers = hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        timeout = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
        with hub.get_session().stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=True
        ) as response:
            hub.hf_raise_for_status(response)
            goes_on = response.status_code == 206
            if have and not goes_on:
                add(-have)
            with part.open("ab" if goes_on else "wb") as out:
                for piece in response.iter_bytes(_PIECE):
                    out.write(piece)
                    add(len(piece))

    def _unsound(
        self, kind: type[FormatError], path: Path, what: str, code: str
    ) -> FormatError:
        return kind(
            f"{path}: {self._repository.id}: {what} - incomplete download? Delete it and "
            f"try again [{code}]",
            path=str(path),
            kind="download",
            code=code,
        )

    @contextlib.contextmanager
    def _meter(self, total: int) -> Iterator[Callable[[int], None]]:
        """Count bytes; yields ``add(size)``."""
        if self._progress is None:
            with self._hub.utils.tqdm(
                total=total,
                unit="B",
                unit_scale=True,
                desc=self._repository.id,
                leave=False,
                disable=None,  # unless a terminal is there to see it
            ) as bar:
                yield bar.update
            return
        done, progress = 0, self._progress

        def add(size: int) -> None:
            nonlocal done
            done += size
            progress(done, total)

        yield add


def _digest(path: Path, file: _File) -> str:
    """SHA-256 of a file, or git's name for it, whichever `file` was listed with."""
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as data:
        while piece := data.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
