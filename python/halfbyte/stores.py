# python/halfbyte/stores.py
# Models that Ollama or LM Studio has fetched, read where they lie.
# SPDX-License-Identifier: Apache-2.0
"""Model files in the local stores of Ollama and LM Studio. Nothing is written there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from halfbyte.choice import gguf_files, nearest
from halfbyte.errors import (
    ArgumentError,
    FormatError,
    TruncatedFileError,
    UnsupportedError,
)

__all__ = ["lmstudio", "ollama"]

# ---- Ollama

# No part begins with a dot, so that none leads out of the store.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_OLLAMA_NAME = re.compile(
    rf"(?:(?:(?P<host>{_PART})/)?(?P<space>{_PART})/)?(?P<model>{_PART})"
    rf"(?::(?P<tag>{_PART}))?"
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MODEL_LAYER = "application/vnd.ollama.image.model"
_MAX_MANIFEST_BYTES = 1 << 20  # real ones have a few layers and about 1 KB


class _Layer(NamedTuple):
    """What a manifest says of the weights."""

    hex: str
    size: int


def ollama(name: str) -> Path:
    """Path of the GGUF file of a model that Ollama has pulled.

    Parameters
    ----------
    name : str
        As Ollama spells it: ``model``, ``model:tag``, ``owner/model:tag`` or
        ``host/owner/model:tag``. Without a tag: ``latest``.

    Returns
    -------
    Path
        A file in the store, of the size that the manifest says.

    Raises
    ------
    ArgumentError
        If it is no such name.
    FileNotFoundError
        If the store has no such model, or not its file.
    FormatError
        If the manifest is not sound, or the file has another size.
    UnsupportedError
        If the model has no GGUF file.
    """
    parts = _OLLAMA_NAME.fullmatch(name)
    if parts is None:
        raise ArgumentError(
            f"ollama:{name}: expected ollama:MODEL:TAG, such as ollama:gemma4:e2b"
        )
    inside = Path(
        parts["host"] or "registry.ollama.ai",
        parts["space"] or "library",
        parts["model"],
        parts["tag"] or "latest",
    )
    roots = _ollama_roots()
    for root in roots:
        manifest = root / "manifests" / inside
        if manifest.is_file():
            return _blob(root, manifest, _model_layer(manifest))
    known = [found for root in roots for found in _ollama_models(root)]
    wanted = f"{name}:latest" if parts["tag"] is None else name
    raise FileNotFoundError(
        f"ollama:{name}: not in {_or(roots)}; fetch it with: ollama pull {name}"
        f"{nearest(wanted, known)}"
    )


def _ollama_roots() -> list[Path]:
    """Where Ollama keeps models: for a user, and as a service of the system."""
    if own := os.environ.get("OLLAMA_MODELS"):
        return [Path(own).expanduser()]
    service = Path("/usr/share/ollama/.ollama/models")
    return [Path("~/.ollama/models").expanduser(), service]


def _ollama_models(root: Path) -> list[str]:
    """Names of all models in a store, as one gives them to `ollama`."""
    manifests = root / "manifests"
    names = []
    for path in sorted(manifests.glob("*/*/*/*")):
        *owner, model, tag = path.relative_to(manifests).parts
        short = "/".join(owner).removeprefix("registry.ollama.ai/")
        short = "" if short == "library" else f"{short}/"
        names.append(f"{short}{model}:{tag}")
    return names


def _model_layer(manifest: Path) -> _Layer:
    """Read which blob holds the weights. The manifest is hostile until checked."""
    with manifest.open("rb") as file:
        text = file.read(_MAX_MANIFEST_BYTES + 1)
    if len(text) > _MAX_MANIFEST_BYTES:
        raise _unsound(manifest, "SIZE", f"over {_MAX_MANIFEST_BYTES} bytes", "less")
    try:
        root: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise _unsound(manifest, "JSON", "something else", "a JSON object") from None
    layers = root.get("layers") if isinstance(root, dict) else None
    if not isinstance(layers, list):
        raise _unsound(manifest, "LAYERS", "none", "a list of layers")
    found = [
        layer
        for layer in layers
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL_LAYER
    ]
    if len(found) != 1:
        raise UnsupportedError(
            f"{manifest}: manifest: {len(found)} layers of type {_MODEL_LAYER}; expected "
            "one - models that Ollama keeps in another form than one GGUF file cannot "
            "be read [OLLAMA_MODEL]",
            path=str(manifest),
            kind="manifest",
            code="OLLAMA_MODEL",
        )
    return _checked_layer(manifest, found[0])


def _checked_layer(manifest: Path, layer: dict[str, Any]) -> _Layer:
    digest, size = layer.get("digest"), layer.get("size")
    parts = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if parts is None:  # it becomes a file name: nothing else may pass
        wanted = "sha256: and 64 hexadecimal digits"
        raise _unsound(manifest, "DIGEST", _brief(digest), wanted)
    if type(size) is not int or size < 0:
        raise _unsound(manifest, "LAYER_SIZE", _brief(size), "a number of bytes")
    return _Layer(parts[1], size)


def _blob(root: Path, manifest: Path, layer: _Layer) -> Path:
    path = root / "blobs" / f"sha256-{layer.hex}"
    again = "pull the model again"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there, but {manifest} names it - {again}")
    size = path.stat().st_size
    if size != layer.size:
        kind = TruncatedFileError if size < layer.size else FormatError
        raise kind(
            f"{path}: {size} bytes; expected {layer.size}, says {manifest} - {again} "
            "[OLLAMA_BLOB_SIZE]",
            path=str(path),
            kind="blob",
            code="OLLAMA_BLOB_SIZE",
            found=str(size),
            expected=str(layer.size),
        )
    return path


def _unsound(manifest: Path, rule: str, found: str, expected: str) -> FormatError:
    code = f"OLLAMA_{rule}"
    return FormatError(
        f"{manifest}: manifest: found {found}; expected {expected} - pull the model "
        f"again [{code}]",
        path=str(manifest),
        kind="manifest",
        code=code,
        found=found,
        expected=expected,
    )


def _brief(value: object) -> str:
    """A value of a manifest in a message."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


# ---- LM Studio

# The file is only compared with those that are there; the others become a path.
_FOLDER = r"(?!\.)[^/\0]+"
_LMSTUDIO_NAME = re.compile(
    rf"(?P<publisher>{_FOLDER})/(?P<model>{_FOLDER})(?:/(?P<file>.+))?"
)
_MAX_SETTINGS_BYTES = 1 << 20


def lmstudio(name: str) -> Path:
    """Path of a GGUF file that LM Studio has fetched.

    Parameters
    ----------
    name : str
        ``publisher/model``, or ``publisher/model/file.gguf`` where there are several.

    Returns
    -------
    Path
        A file in the store; of a split one, the first shard.

    Raises
    ------
    ArgumentError
        If it is no such name, or does not say which of several files.
    FileNotFoundError
        If the store has no such model.
    """
    parts = _LMSTUDIO_NAME.fullmatch(name)
    if parts is None:
        raise ArgumentError(
            f"lmstudio:{name}: expected lmstudio:PUBLISHER/MODEL, and /FILE where it has "
            "several"
        )
    model = f"{parts['publisher']}/{parts['model']}"
    folders = _lmstudio_folders()
    for folder in folders:
        home = folder / model
        if home.is_dir():
            names = [path.relative_to(home).as_posix() for path in home.rglob("*.gguf")]
            return home / gguf_files(names, parts["file"], f"lmstudio:{model}")[0]
    known = [
        path.relative_to(folder).as_posix()
        for folder in folders
        for path in folder.glob("*/*")
        if path.is_dir()
    ]
    raise FileNotFoundError(
        f"lmstudio:{name}: not in {_or(folders)}{nearest(model, known)}"
    )


def _lmstudio_folders() -> list[Path]:
    """Where LM Studio keeps models: as it is set up, then where it does by default."""
    user = Path.home()
    homes = [user / ".lmstudio", user / ".cache" / "lm-studio"]
    pointer = _text(user / ".lmstudio-home-pointer").strip()
    if pointer:
        homes.insert(0, Path(pointer))
    folders = []
    for home in homes:
        chosen = _downloads_folder(home / "settings.json")
        folders += [*([Path(chosen)] if chosen else []), home / "models"]
    return list(dict.fromkeys(folders))


def _downloads_folder(settings: Path) -> str | None:
    """Folder that the user chose in LM Studio, if any."""
    try:
        chosen = json.loads(_text(settings) or "{}")["downloadsFolder"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return chosen if isinstance(chosen, str) and "\0" not in chosen else None


def _text(path: Path) -> str:
    """A small file's text; nothing if there is none that can be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_SETTINGS_BYTES).decode("utf-8")
    except (OSError, ValueError):
        return ""


def _or(paths: list[Path]) -> str:
    return " or ".join(map(str, paths))
