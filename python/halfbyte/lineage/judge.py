# python/halfbyte/lineage/judge.py
# SPDX-License-Identifier: Apache-2.0
"""Whether a file's weights were trained for 4 bits: by its hash, else by the weights.

Three traces are left by training for Q4_0. The bfloat16 checkpoint lies on a lattice
(`halfbyte.lattice`), with steps finer than float16. An ordinary quantizer that packs such
weights makes level -8 of the largest magnitude, as it always does; where that was a
trained +7, no trained level becomes +4 or -4, which other weights avoid in one block of
fifty. And a lattice of float16 steps was a packed file before. Checkpoints that keep
codes and scales apart, as the mobile release and compressed-tensors do, leave no such
trace; what the ordinary quantizers of that form make can still be told.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from halfbyte.choice import shown
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.files import File, PathLike, open_file
from halfbyte.lineage.evidence import Evidence, collect, draw
from halfbyte.lineage.hints import Hint, hints
from halfbyte.lineage.identity import (
    Identity,
    KnownFile,
    Progress,
    identify,
    tensor_hashes,
    tensors_digest,
)
from halfbyte.lineage.traces import TensorTrace, fours, traces

__all__ = ["Lineage", "Verdict", "lineage"]

# An ordinary quantizer leaves a -8 in each block; half a percent is for blocks of one
# value, and for files that another tool touched.
_ORDINARY = 0.995
# Levels of +-4 for each of +-3 and +-5, in blocks whose largest weight has the sign of
# which there are fewest. None of trained weights where the largest is a +7; where it is
# +6 or less there are some: 0.2 in matrices trained in the tests. About 1 of others,
# whatever their tails, as their levels are spread evenly enough. All matrices together
# have to be on one side, and none on the other: the fewest levels that count give a
# deviation of 0.09, five of which are between 0.55 and 1.
_TRAINED, _BETWEEN, _UNTRAINED = 0.4, 0.55, 0.7
_ON, _OFF = 0.999, 0.01  # of the groups, on the lattice and off it
# Share of the groups whose step is no float16 number. Trained steps are not in 2 to 10 %
# of them; those of a file that was packed once never are.
_FINER = 0.003
# Share of a row's weights at its outermost levels. A step that makes +-7 of the row's
# largest magnitude puts three or so of a thousand there, fewer where tails are heavy;
# a step that was trained, or searched for, cuts off some percent.
_TAIL = 0.01


class Verdict(str, Enum):
    """Where weights come from."""

    QAT = "qat"
    """Trained for 4 bits, and as training left them."""
    REQUANTIZED = "qat-requantized"
    """Trained for 4 bits, then packed by an ordinary quantizer."""
    PTQ = "ptq"
    """Packed by an ordinary quantizer from weights that were not trained for it."""
    OTHER = "not-qat"
    """Not trained for 4 bits, and not packed either."""
    UNKNOWN = "cannot-tell"
    """The weights alone do not say."""


_OF_KIND = {
    "official": (Verdict.QAT, "published by Google as"),
    "encoder": (Verdict.OTHER, "the encoder of images that Google published as"),
    "repack": (Verdict.QAT, "Google's weights, packed again and published as"),
    "ptq": (Verdict.PTQ, "original weights, packed and published as"),
}


@dataclass(frozen=True)
class Lineage:
    """Verdict on a file, and the evidence."""

    path: str
    verdict: Verdict
    reason: str
    by_weights: Verdict
    """What the weights say, whatever the hash does. Google's own Q4_0 files were packed by
    the ordinary quantizer: ``qat`` by their hash, ``qat-requantized`` by their weights."""
    identity: Identity
    hints: tuple[Hint, ...]
    """Metadata, which anybody can write: never part of the verdict."""
    tensors: tuple[TensorTrace, ...]
    tensor_sha256: dict[str, str] | None
    """Hashes of all tensors, if they were asked for."""
    tensors_sha256: str | None
    """All of them in one, see `halfbyte.lineage.identity.tensors_digest`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        evidence = [line._asdict() for line in self.evidence()]
        return asdict(self) | {"verdict": self.verdict.value, "evidence": evidence}

    def evidence(self) -> list[Evidence]:
        """Collect what the verdict rests on, by the kinds of matrices in the file."""
        return collect(self.tensors)

    def to_svg(self) -> str:
        """Draw the evidence: every number of every tensor, and the levels.

        Returns
        -------
        str
            An SVG document for light and dark pages.
        """
        name = shown(Path(self.path).name)
        return draw(f"{name}: {self.verdict.value}", self.reason, self.tensors)


def lineage(
    source: File | PathLike, *, hash: bool = False, progress: Progress | None = None
) -> Lineage:
    """Say where a file's weights come from.

    Parameters
    ----------
    source : File, str or path-like
        A model file, opened or not. Of Q4_0 and bfloat16 matrices and of those that
        keep codes and scales apart, 32 rows each are read.
    hash : bool
        Hash the file, and every tensor, whatever their sizes. Without it the file is
        hashed if it is as large as one that was published, and tensors are not.
    progress : callable, optional
        Called with the bytes hashed, and those to hash.

    Returns
    -------
    Lineage
        A hash that is known decides. Else ``Verdict.UNKNOWN`` rather than a guess:
        where tensors disagree, or where several ways lead to the same blocks, as
        packing by the lattice and a search for the step of least error do.

    Raises
    ------
    FormatError, UnsupportedError, OSError
        If it is a path, the file cannot be opened, and its hash is not known either.
    """
    if not isinstance(source, File):
        opened = _opened(source, hash, progress)
        if isinstance(opened, Lineage):
            return opened
        source = opened
    identity = identify(source.paths, hash=hash, progress=progress)
    found = traces(source)
    verdict, reason = by_weights, _ = _judge(found)
    if identity.known is not None:
        verdict, reason = _of(identity.known)
    hashes = list(tensor_hashes(source, progress=progress)) if hash else None
    return Lineage(
        source.paths[0],
        verdict,
        reason,
        by_weights,
        identity,
        hints(source),
        found,
        dict(hashes) if hashes else None,
        tensors_digest(hashes) if hashes else None,
    )


def _opened(path: PathLike, hash: bool, progress: Progress | None) -> File | Lineage:
    """Open a file; of one that is published and of no kind that is read here, say so."""
    try:
        return open_file(path)
    except (FormatError, UnsupportedError):
        name = os.fsdecode(path)
        if not Path(name).is_file():
            raise
        identity = identify([name], hash=hash, progress=progress)
        if identity.known is None:
            raise
        verdict, reason = _of(identity.known)
        unknown = Verdict.UNKNOWN
        return Lineage(name, verdict, reason, unknown, identity, (), (), None, None)


def _of(known: KnownFile) -> tuple[Verdict, str]:
    verdict, what = _OF_KIND[known.kind]
    return verdict, f"{what} {known.of}: {known.name}; the SHA-256 is that file's"


def _judge(found: Sequence[TensorTrace]) -> tuple[Verdict, str]:
    floats = [t for t in found if t.kind == "bf16"]
    # Beside packed matrices, float ones are those that a file leaves unpacked.
    if blocks := [t for t in found if t.kind == "q4_0"]:
        return _judge_blocks(blocks)
    if codes := [t for t in found if t.kind != "bf16"]:
        return _judge_codes(codes, [t for t in floats if "embed_tokens" in t.name])
    if not floats:
        return Verdict.UNKNOWN, "no matrices in Q4_0, bfloat16, or codes with scales"
    return _judge_floats(floats)


def _judge_floats(traces: Sequence[TensorTrace]) -> tuple[Verdict, str]:
    shares = [t.lattice for t in traces if t.lattice is not None]
    if max(shares) < _OFF:
        return Verdict.OTHER, "no matrix is on a 4-bit lattice"
    if min(shares) < _ON:
        return Verdict.UNKNOWN, "some weights are on a 4-bit lattice, and some are not"
    if all(t.finer is not None and t.finer > _FINER for t in traces):
        return Verdict.QAT, "every matrix is on a 4-bit lattice with trained steps"
    verdict, reason = _judge_blocks(traces)
    return verdict, f"steps are float16 numbers, as of a file once packed; {reason}"


def _judge_blocks(traces: Sequence[TensorTrace]) -> tuple[Verdict, str]:
    if any(t.lowest < _ORDINARY for t in traces):
        return Verdict.UNKNOWN, (
            "not packed by the ordinary quantizer: by the lattice of trained weights, or "
            "by a search for steps, which leaves the same traces"
        )
    telling = [t for t in traces if t.fours is not None]
    if not telling:
        return Verdict.UNKNOWN, "packed by the ordinary quantizer; too few weights"
    shares = [t.fours for t in telling if t.fours is not None]
    together = fours(
        [sum(column) for column in zip(*(t.levels for t in telling), strict=True)]
    )
    if max(shares) < _BETWEEN and together < _TRAINED:
        return Verdict.REQUANTIZED, (
            "packed by the ordinary quantizer from weights that were on a 4-bit lattice"
        )
    if min(shares) > _BETWEEN and together > _UNTRAINED:
        return Verdict.PTQ, (
            "packed by the ordinary quantizer from weights on no 4-bit lattice"
        )
    return Verdict.UNKNOWN, "packed by the ordinary quantizer; its matrices disagree"


def _judge_codes(
    codes: Sequence[TensorTrace], embeddings: Sequence[TensorTrace]
) -> tuple[Verdict, str]:
    """Judge codes with scales of their own, and embeddings that were left unpacked."""
    shares = [t.lattice for t in embeddings if t.lattice is not None]
    if shares and max(shares) < _OFF:
        return Verdict.PTQ, (
            "packed, and the embeddings beside are not on a 4-bit lattice, as those of "
            "trained checkpoints are"
        )
    rows = [t for t in codes if t.kind == "4 bit per row"]
    if rows and all(t.lowest == 0 and t.ends < _TAIL for t in rows):
        return Verdict.PTQ, (
            "the largest weight of each row is at level 7, none at -8, and few are near: "
            "as an ordinary quantizer packs"
        )
    if shares and min(shares) > _ON:
        return Verdict.UNKNOWN, (
            "the embeddings are on a 4-bit lattice; the levels of the packed matrices "
            "would be the same if nothing had been trained"
        )
    return Verdict.UNKNOWN, (
        "codes with scales of their own look the same, trained or searched for; only "
        "the hash of a published file would tell"
    )
