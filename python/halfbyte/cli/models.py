# python/halfbyte/cli/models.py
# From what the user named to a loaded model, and how it is asked to write.
# SPDX-License-Identifier: Apache-2.0
"""Opening models, reading prompts, choosing sampling parameters."""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from halfbyte._sizes import size_text
from halfbyte.cli import terminal
from halfbyte.cli.errors import UsageError
from halfbyte.cli.options import KvType

if TYPE_CHECKING:
    from halfbyte.model import Message, Model
    from halfbyte.records import Stats

__all__ = [
    "NO_TEMPLATE",
    "Sampling",
    "existing",
    "find",
    "is_model_path",
    "named",
    "open_model",
    "read_prompt",
    "read_text",
    "request",
    "require_other",
    "sampling",
    "split_positionals",
    "stats_dict",
    "stats_line",
]

NO_TEMPLATE = "no chat template of Gemma in this model: it goes on with the prompt"

# No context of today's models holds this much text; it bounds what is read at all.
_MAX_TEXT_BYTES = 64 << 20


class Sampling(NamedTuple):
    """How the next token is chosen, complete."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int


def is_model_path(text: str) -> bool:
    """Whether a lone argument names a model rather than being a prompt."""
    from halfbyte import names

    try:
        path = Path(text)
        if not names.is_path(text):
            return not re.search(r"\s", text)
        return (
            path.suffix == ".gguf"
            or (path.is_dir() and (path / "config.json").exists())
            or (path.is_file() and _starts_like_gguf(path))
        )
    except (OSError, ValueError):  # too long or with a zero byte: no path at all
        return False


def _starts_like_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def split_positionals(
    first: str | None, second: str | None, *, quiet: bool = False
) -> tuple[Path | None, str]:
    """Tell MODEL and text apart, and read the text from stdin where it is not given.

    Returns
    -------
    tuple of (Path or None, str)
        The model's path, None for the demo model, and the text.
    """
    model, text, path = first, second, None
    if second is None and first is not None and not is_model_path(first):
        model, text = None, first
    if model is not None:
        path = find(model, quiet=quiet)  # before waiting for a text
    if text == "-" or (text is None and not sys.stdin.isatty()):
        return path, read_prompt("-")
    if text is None:
        raise UsageError("no text: give it as an argument, or pipe it in")
    return path, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_prompt(name: str) -> str:
    """Read a text as `read_text` does, without the line break that ends it."""
    return read_text(name).removesuffix("\n").removesuffix("\r")


def read_text(name: str) -> str:
    """Read a file, or stdin if it is called ``-``, all of it."""
    if name == "-":
        return _read(sys.stdin.buffer, "stdin")
    with existing(name).open("rb") as file:
        return _read(file, name)


def _read(file: BinaryIO, name: str) -> str:
    data = file.read(_MAX_TEXT_BYTES + 1)
    if len(data) > _MAX_TEXT_BYTES:
        raise UsageError(f"{name}: more than {size_text(_MAX_TEXT_BYTES)} of text")
    if text := _decoded(data, name):
        return text
    raise UsageError(f"{name}: no text")


def _decoded(data: bytes, name: str) -> str:
    """UTF-8, without the byte order mark that editors of Windows put first."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}") from None


def find(model: str | Path | None, *, quiet: bool = False) -> Path:
    """Path of the named model, fetched or made if needed; of the demo model if none."""
    from halfbyte import bundled, demo, names

    if model is not None and names.is_path(model):
        if (hint := bundled.shadowed(model)) is not None and not quiet:
            terminal.note(hint)
        return existing(str(model))
    if model is not None:
        with terminal.progress(f"fetching {model}", quiet=quiet) as update:
            return names.resolve(model, progress=update)

    if (cached := demo.cached_path()) is not None:
        return cached
    try:
        with terminal.progress("demo model", quiet=quiet) as update:
            path = demo.model_path(update)
    except OSError as error:
        raise _movable(error) from None
    if not quiet:
        terminal.note(
            f"demo model: Gemma 3 270M (base), under the Gemma Terms of Use "
            f"(https://ai.google.dev/gemma/terms), in {path}"
        )
    return path


def _movable(error: OSError) -> OSError:
    """`error` of the cache, with the variable that says where that is."""
    if error.strerror is None or "HALFBYTE_CACHE" in error.strerror:
        return error
    text = f"{error.strerror} (HALFBYTE_CACHE moves the demo model)"
    return OSError(error.errno, text, error.filename)


def named(path: str) -> Path:
    """`path`, which is not empty, as a variable of the shell that was never set is."""
    if not path:
        raise UsageError("a name is empty: expected that of a model or file")
    return Path(path)


def existing(path: str) -> Path:
    """`path`, or the error that says it is not there, or may not be looked at."""
    found = named(path)
    os.lstat(path)
    return found


def require_other(source: Path, target: Path) -> None:
    """Refuse to write over a file of the model that is read."""
    from halfbyte.files import open_file
    from halfbyte.sidecars import TOKENIZER

    if not target.exists():
        return
    folder = source if source.is_dir() else source.parent
    beside = [folder / name for name in ("config.json", *TOKENIZER)]
    read = [*map(Path, open_file(source).paths), *filter(Path.exists, beside)]
    if any(target.samefile(path) for path in read):
        raise UsageError(f"{target}: found the file that is read; expected another one")


def open_model(
    path: Path,
    threads: int | None,
    context: int | None,
    *,
    quiet: bool,
    kv: KvType = KvType.F32,
    activations: str | None = None,
    quantize: str | None = None,
    repack: str = "auto",
    drafter: str | None = None,
) -> Model:
    """Load a model."""
    import halfbyte

    helper = None if drafter is None else find(drafter, quiet=quiet)
    with terminal.progress("loading", quiet=quiet) as update:
        return halfbyte.load(
            path,
            threads=threads,
            context=context,
            kv=kv.value,
            activations=activations,
            quantize=quantize,
            repack=repack,
            drafter=helper,
            progress=update,
        )


def sampling(
    model: Model,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repeat_penalty: float | None = None,
    seed: int | None = None,
) -> Sampling:
    """Fill in what was not asked for.

    The model's own recommendation comes first, then greedy; an option that only means
    something when sampling turns sampling on.
    """
    own = model.sampling
    samples = any(value is not None for value in (top_k, top_p, min_p))
    if temperature is None:
        temperature = own.get("temperature", 1.0 if samples else 0.0)
    if seed is None:
        seed = secrets.randbits(31) if temperature > 0 else 0
    return Sampling(
        temperature=temperature,
        top_k=own.get("top_k", 0) if top_k is None else top_k,
        top_p=own.get("top_p", 1.0) if top_p is None else top_p,
        min_p=0.0 if min_p is None else min_p,
        repetition_penalty=1.0 if repeat_penalty is None else repeat_penalty,
        seed=seed,
    )


def request(
    model: Model, text: str, system: str | None, *, think: bool, raw: bool
) -> str | list[Message]:
    """Choose between a conversation and a text to go on with."""
    if raw or not model.has_template:
        if system is not None or think:
            option = "--think" if think else "--system"
            why = "--raw" if raw else "this model has none"
            raise UsageError(f"{option} needs a chat template ({why})")
        return text
    messages: list[Message] = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages


def stats_line(stats: Stats) -> str:
    """Speed and memory of an answer, in one line."""
    cached = f" (+{stats.cached_tokens} kept)" if stats.cached_tokens else ""
    drafts = ""
    if stats.drafted_tokens:
        drafts = f" ({stats.accepted_tokens} of {stats.drafted_tokens} guesses came)"
    return (
        f"prompt {stats.prompt_tokens} tokens{cached}, "
        f"{terminal.quantity(stats.prompt_tps)} tok/s | "
        f"answer {stats.generated_tokens} tokens, "
        f"{terminal.quantity(stats.decode_tps)} tok/s{drafts} | "
        f"peak memory {size_text(stats.peak_rss_bytes)}"
    )


def stats_dict(stats: Stats) -> dict[str, float]:
    """`stats` under the names of its attributes."""
    names = (
        "prompt_tokens",
        "cached_tokens",
        "generated_tokens",
        "drafted_tokens",
        "accepted_tokens",
        "prompt_seconds",
        "decode_seconds",
        "prompt_tps",
        "decode_tps",
        "peak_rss_bytes",
    )
    return {name: getattr(stats, name) for name in names}
