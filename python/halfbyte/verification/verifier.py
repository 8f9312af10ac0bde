# python/halfbyte/verification/verifier.py
# SPDX-License-Identifier: Apache-2.0
"""Whether a model file is whole, what it should be, and computes what it should."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from halfbyte import names
from halfbyte._arguments import number, string, whole
from halfbyte.choice import is_encoder_tensor, listed, shown
from halfbyte.errors import (
    ArgumentError,
    FormatError,
    ModelError,
    UnsupportedError,
)
from halfbyte.files import PathLike, open_file
from halfbyte.lineage.identity import Identity, identify
from halfbyte.model import Model, examine, load
from halfbyte.verification import contents
from halfbyte.verification.agreement import Agreement, compare, same_tokens

__all__ = ["Verification", "verify"]

Done = Callable[[int, int], None]
Progress = Callable[[str, int, int], None]

_PASSAGES = Path(__file__).parents[1] / "data" / "passages.txt"


@dataclass(frozen=True)
class Verification:
    """What was checked of a file, and what is wrong with it. Prints as a small table."""

    path: str
    identity: Identity
    tensors: int = 0
    bytes: int = 0
    """Of the tensors, all of which were read."""
    architecture: str | None = None
    """None if it was not checked as a model."""
    unread_tensors: tuple[str, ...] = ()
    """What the network has no place for; encoders are not counted."""
    against: str | None = None
    agreement: Agreement | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What is odd, but harmless, and what was not checked."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return {"ok": self.ok} | asdict(self)

    def __str__(self) -> str:
        """Render the table."""
        return "\n".join(
            [
                f"file         {shown(self.path)}",
                f"identity     {_identity_line(self.identity)}",
                f"contents     {self.tensors} tensors in {self.bytes:,} bytes were read",
                f"model        {self.architecture or 'not checked'}",
                *_agreement_lines(self.against, self.agreement),
                *(f"note         {note}" for note in self.notes),
                *(f"problem      {problem}" for problem in self.problems),
                f"verdict      {'ok' if self.ok else 'not ok'}",
            ]
        )

    __repr__ = __str__


def _identity_line(identity: Identity) -> str:
    if identity.known is not None:
        return f"{identity.known.of}: {identity.known.name}, by its SHA-256"
    if identity.sha256 is not None:
        return f"sha256 {identity.sha256}"
    if identity.as_large_as is not None:
        alike = identity.as_large_as
        return f"as large as {alike.of}: {alike.name}, of which no hash is known"
    return "not hashed: no published file is as large"


def _agreement_lines(against: str | None, a: Agreement | None) -> list[str]:
    if against is None or a is None:
        return []
    return [
        f"against      {shown(against)}, {a.positions} positions",
        f"  divergence {a.kl_mean:.3g} nats in the mean, 99 % below {a.kl_p99:.3g}",
        f"  likeliest  the same at {a.top1:.2%}",
        f"  perplexity {a.perplexity:.4f}, there {a.reference_perplexity:.4f}",
        f"  greedy     the first {a.greedy_equal} of {a.greedy_tokens} tokens equal",
    ]


def verify(
    path: PathLike,
    *,
    sha256: str | None = None,
    against: PathLike | None = None,
    text: str | None = None,
    greedy: int = 32,
    max_kl: float = 0.1,
    min_top1: float = 0.85,
    activations: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check a model file: its hash, its structure, every weight, and what it computes.

    Parameters
    ----------
    path : str or path-like
        What `load` takes.
    sha256 : str, optional
        The digest that the file should have: 64 hexadecimal digits. If it has another
        one, nothing else is looked at. Without it, the file is hashed if it is as large
        as one that was published.
    against : str or path-like, optional
        A model that should compute the same, such as the checkpoint that this one was
        packed from.
    text : str, optional
        What both are run on; some passages of prose, dialogue, lists and code by default.
    greedy : int
        Tokens that both go on with after the beginning of the text.
    max_kl : float
        Mean divergence, in nats, up to which they agree.
    min_top1 : float
        Share of the positions where the likeliest token must be the same. Packing to 4
        bits costs 0.05 and 12 % with the ordinary quantizer; another model is further
        away.
    activations : {"auto", "static", "dynamic", "f32"}, optional
        As for `load`, for both. ``"f32"`` compares the weights alone, and is slow.
    threads : int, optional
        `halfbyte.num_threads` by default.
    progress : callable, optional
        Called with what is being done, and with how much of it is done and of how much.

    Returns
    -------
    Verification

    Raises
    ------
    ArgumentError, DTypeError
        If an option is none of those it may be, or of another type.
    FormatError, UnsupportedError, OSError
        If a file cannot be opened, or is no model file.
    ModelError, OutOfMemoryError
        If `against` cannot be run.
    """
    for option, given in (("sha256", sha256), ("text", text)):
        if given is not None:
            string(given, option)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ArgumentError(
            f"sha256: expected 64 hexadecimal digits, got {shown(sha256)}"
        )
    greedy = whole(greedy, "greedy", 0)
    max_kl, min_top1 = number(max_kl, "max_kl"), number(min_top1, "min_top1")
    stage = partial(_stage, progress)
    found = names.resolve(path, progress=stage("fetching"))
    checked = _check_file(found, sha256, stage)
    if against is None:
        return checked
    checked = replace(checked, against=os.fsdecode(against))
    if not checked.ok:
        note = "not compared: what is wrong comes first"
        return replace(checked, notes=(*checked.notes, note))
    model, reference = (
        load(one, activations=activations, threads=threads, progress=stage("loading"))
        for one in (found, against)
    )
    ids, problem = _tokens(model, reference, text)
    if problem is not None:
        return replace(checked, problems=(problem,))
    if len(ids) < 2:
        raise ArgumentError("text: no text to predict")
    apart = compare(model, reference, ids, greedy=greedy, progress=stage("comparing"))
    problems = tuple(_too_far(apart, max_kl, min_top1))
    return replace(checked, agreement=apart, problems=problems)


def _stage(progress: Progress | None, name: str) -> Done | None:
    return None if progress is None else partial(progress, name)


def _check_file(
    path: Path, sha256: str | None, stage: Callable[[str], Done | None]
) -> Verification:
    """Hash the file, read every tensor, and see whether the network finds its own."""
    checked = None
    if sha256 is not None:  # before anything in the file is used
        checked = _check_hash(path, sha256.lower(), stage("hashing"))
        if not checked.ok:
            return checked
    file = open_file(path)
    if checked is None:
        identity = identify(file.paths, progress=stage("hashing"))
        checked = Verification(str(path), identity)
    model, problem, note = _model(path)
    unread = () if model is None else tuple(model.unread_tensors)
    unread = tuple(name for name in unread if not is_encoder_tensor(name))
    no_place = f"{len(unread)} tensors have no place in the model{listed(unread)}"
    return replace(
        checked,
        tensors=len(file.tensors),
        bytes=sum(tensor.bytes for tensor in file.tensors),
        architecture=None if model is None else model.config.architecture,
        unread_tensors=unread,
        problems=(*problem, *contents.problems(file, progress=stage("reading"))),
        notes=(*file.warnings, *note, *([no_place] if unread else [])),
    )


def _check_hash(path: Path, sha256: str, progress: Done | None) -> Verification:
    if not path.is_file():
        raise ArgumentError(
            f"sha256: expected the path of one file, got {shown(str(path))}"
        )
    identity = identify([str(path)], hash=True, progress=progress)
    checked = Verification(str(path), identity)
    if identity.sha256 == sha256:
        return checked
    problem = f"sha256: found {identity.sha256}; expected {sha256}"
    return replace(checked, problems=(problem,))


def _model(path: Path) -> tuple[Model | None, list[str], list[str]]:
    """Open the model of a file. Or tell what is wrong with it, or why that is unknown."""
    try:
        return examine(path), [], []
    except (UnsupportedError, FileNotFoundError) as error:
        return None, [], [f"not checked as a model: {error}"]
    except (ModelError, FormatError) as error:
        return None, [str(error)], []


def _tokens(
    model: Model, reference: Model, text: str | None
) -> tuple[list[int], str | None]:
    """Tokens to compare two models on, or why they cannot be compared."""
    if text is None:
        text = _PASSAGES.read_text(encoding="utf-8")
    sizes = model.config.vocab_size, reference.config.vocab_size
    if sizes[0] != sizes[1]:
        return [], f"vocabulary: found {sizes[0]} tokens; expected {sizes[1]}"
    if not model.has_tokenizer:
        return reference.tokenize(text), None
    if reference.has_tokenizer and not same_tokens(model, reference, text):
        return [], "tokenizer: found other tokens of the text; expected the same"
    return model.tokenize(text), None


def _too_far(found: Agreement, max_kl: float, min_top1: float) -> Iterator[str]:
    # What is not a number is not within a limit either.
    if not found.kl_mean <= max_kl:
        yield f"divergence: found {found.kl_mean:.3g}; expected at most {max_kl:g}"
    if not found.top1 >= min_top1:
        yield f"likeliest: found {found.top1:.2%} equal; expected {min_top1:.2%}"
