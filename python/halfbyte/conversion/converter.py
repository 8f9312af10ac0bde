# python/halfbyte/conversion/converter.py
# SPDX-License-Identifier: Apache-2.0
"""The function `halfbyte.convert`."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from halfbyte import names, origin, targets
from halfbyte._arguments import one_of
from halfbyte.conversion.encoders import quantizers
from halfbyte.conversion.forms import FORMS
from halfbyte.conversion.gemma_directory import FILE, plan_directory
from halfbyte.conversion.gemma_gguf import FORMATS, plan_gguf
from halfbyte.conversion.plan import Plan, Stored, Tally
from halfbyte.conversion.report import Report, tensor_reports
from halfbyte.conversion.stream import PIECE_BYTES, Progress, stream
from halfbyte.draft import Draft, is_draft, write_whole
from halfbyte.errors import ArgumentError
from halfbyte.files import PathLike

__all__ = ["CONTAINERS", "convert", "tensor_file"]

# Containers, and the formats of each.
CONTAINERS = {"gguf": tuple(FORMATS), "safetensors": (*FORMS, "bf16")}


def convert(
    src: PathLike,
    dst: PathLike,
    *,
    format: str = "q4_0",
    to: str = "gguf",
    quantizer: str = "rtn",
    imatrix: PathLike | None = None,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a model in another format.

    Weights that were trained for Q4_0 and published in bfloat16 keep their trained levels
    in ``"q4_0"``: see `halfbyte.lattice`. Others are rounded by `quantizer`.

    What stands under `dst` is the old file or the new one, whole, whatever happens. After
    Ctrl-C or a kill the same call goes on where it was. Memory peaks at some megabytes a
    thread and what the tokenizer takes, whatever the size of the model.

    Parameters
    ----------
    src : str or path-like
        A directory with config.json and safetensors, or a GGUF file, of weights in BF16,
        F16 or F32; or a name as for `halfbyte.load`. To ``"safetensors"`` only a
        directory is converted.
    dst : str or path-like
        The file to write. One that is there is replaced, also if it is `src`. Of
        ``"safetensors"`` a folder, which has to be new or empty.
    format : str
        Of the matrices. In GGUF ``"q4_0"``, ``"q8_0"`` or ``"bf16"``: norms are F32, and
        so is the router of experts; the projection of per-layer embeddings is F16. With
        ``"q4_0"``, embeddings that are not on the lattice become Q6_K.

        In safetensors ``"w4a16-ct"``, int4 of compressed-tensors in groups of 32 with
        bfloat16 steps, for all linear layers; ``"mobile"``, 2, 4 and 8 bits with one
        float32 step a row, in the widths of the released E2B and E4B, for embeddings as
        well; or ``"bf16"``. Steps of activations are kept where the source has them, and
        else 0, for none. All else is BF16.
    to : {"gguf", "safetensors"}
        The container.
    quantizer : {"rtn", "mse", "imatrix"}
        What rounds weights off the lattice: see `halfbyte.quantize`. Types that have no
        search, such as Q6_K, are rounded to nearest.
    imatrix : str or path-like, optional
        The file of ``"imatrix"``, as `llama-imatrix` writes it.
    threads : int, optional
        `halfbyte.num_threads` by default. The bytes do not depend on it.
    dry_run : bool
        Say what would be written, and write nothing.
    progress : callable, optional
        Called with bytes of the source that are done, and all of them.

    Returns
    -------
    Report

    Raises
    ------
    ArgumentError, DTypeError
        If an option is none of those it may be or of another type, or what is there
        under `dst` is not to be replaced: a folder of other files, or no regular file.
    FormatError, ModelError, UnsupportedError
        If the source is damaged, no model that can run, packed already, or has no such
        form. The message names the tensor or key.
    NumericalError
        If a weight is not finite, or does not fit into float16.
    FileChangedError
        If the source changed meanwhile.
    OSError
        If a file cannot be read or written; it says how far it went.
    """
    one_of(to, "to", CONTAINERS)
    one_of(format, "format", CONTAINERS[to])
    rounds = quantizers(quantizer, imatrix)
    if threads is not None:
        threads = targets._valid(threads, "threads")
    started = time.monotonic()
    source, target = names.resolve(src), Path(os.fsdecode(dst))
    planned = plan_gguf if to == "gguf" else plan_directory
    how = None if format == "bf16" else f"by the lattice, or else {quantizer}"
    plan = planned(source, format, rounds, origin.claim("convert", format, how))
    tallies, resumed = None, 0
    if not dry_run:
        if to != "gguf":
            _make_folder(target, plan)
        workers = threads or targets.num_threads()
        tallies, resumed = _write(plan, tensor_file(target, to), workers, progress)
    return Report(
        source=str(source),
        target=str(target),
        format=format,
        container=to,
        quantizer=quantizer,
        bytes=plan.layout.size,
        written=not dry_run,
        resumed_bytes=resumed,
        seconds=time.monotonic() - started,
        tensors=tensor_reports(plan, tallies),
        left_out=plan.left_out,
        notes=plan.notes,
    )


def tensor_file(dst: Path, to: str) -> Path:
    """Where `convert` writes the tensors, and beside which it leaves a part of them.

    Parameters
    ----------
    dst : Path
    to : str
        The container.

    Returns
    -------
    Path
        `dst`, or a file in it.
    """
    return dst if to == "gguf" else dst / FILE


def _write(
    plan: Plan, whole: Path, threads: int, progress: Progress | None
) -> tuple[list[Tally], int]:
    """Write the file of tensors, and then what stands beside it."""
    with Draft(whole, plan.layout.size, key=_fingerprint(plan)) as draft:
        tallies, resumed = stream(plan, draft, threads, progress)
        draft.commit(plan.check)
    for name, data in plan.beside:
        write_whole(whole.parent / name, data)
    return tallies, resumed


def _make_folder(folder: Path, plan: Plan) -> None:
    """Make it, or make sure that nothing in it is of another model."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = {name for name, _ in plan.beside[:-1]}
    if _begins_with(folder / FILE, plan.layout.header):
        ours.add(FILE)  # of an attempt that ended before what stands beside it
    found = {path.name for path in folder.iterdir() if not is_draft(path)}
    if found - ours:
        raise ArgumentError(
            f"{folder}: expected an empty folder, or a new one, found "
            f"{min(found - ours)!r}"
        )


def _begins_with(path: Path, data: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(data)) == data


def _fingerprint(plan: Plan) -> str:
    """Digest of all that the target's bytes depend on."""
    parts = [
        targets.__version__,
        str(PIECE_BYTES),
        *(j.encoder.name for j in plan.jobs),
    ]
    paths = {
        path
        for job in plan.jobs
        if isinstance(job.source, Stored)
        for path in job.source.file.paths
    }
    for path in sorted(paths):
        there = Path(path).stat()
        parts.append(f"{path} {there.st_ino} {there.st_size} {there.st_mtime_ns}")
    digest = hashlib.sha256(plan.layout.header)
    digest.update("\0".join(parts).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
