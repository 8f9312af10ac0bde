# benchmarks/synthetic.py
# Models of the released sizes, with random weights, for measuring without them.
# SPDX-License-Identifier: Apache-2.0
"""Write a model like one of Gemma 4's QAT releases, with random weights.

    python benchmarks/synthetic.py e2b OUT.gguf [--layers N] [--seed N] [--force]
    python benchmarks/synthetic.py e2b-mobile DIR
    python benchmarks/synthetic.py e2b-w4a16 --dry-run
    python benchmarks/synthetic.py e2b-drafter DIR
    python benchmarks/synthetic.py --list

Names, shapes and types of the tensors and the hyperparameters are those of the official
files, Q4_0 in GGUF or directories in safetensors, so speed and memory are those of the
real model. The text it writes is noise, its vocabulary is made up; README.md in this
folder says what else differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from halfbyte.cli import terminal
from synth import directory, gguf_file
from synth.saving import Progress, save_directory, save_file
from synth.shapes import SIZES, Shape

__all__ = ["kinds", "write"]


def kinds() -> list[str]:
    """Name what can be written: a size is a GGUF file, with a form a directory."""
    return [
        *SIZES,
        *(
            f"{size}-{form}"
            for size, shape in SIZES.items()
            for form in directory.FORMS
            if shape.mobile_bytes or form == "drafter"
        ),
    ]


def write(
    path: Path | str,
    kind: str,
    *,
    layers: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a model with random weights.

    Parameters
    ----------
    path : Path or str
        Where: a GGUF file or a directory. It appears there when it is complete.
    kind : str
        One of `kinds()`.
    layers : int, optional
        Cut the model to so many layers.
    seed : int
        The same one gives the same bytes on every machine.
    force : bool
        Replace an existing file, or such files in an existing directory.
    progress : callable, optional
        Called with bytes written and bytes in all, of each file.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If there is no such kind, or it cannot be cut so.
    OSError
        If the file exists, or the disk is full or would be.
    """
    shape, form = _shape(kind, layers)
    path = Path(path)
    if form:
        files = directory.contents(shape, form, seed)
        save_directory(path, files, force=force, progress=progress)
    else:
        contents = gguf_file.contents(shape, seed)
        save_file(path, contents, force=force, progress=progress)
    return path


def _shape(kind: str, layers: int | None) -> tuple[Shape, str]:
    """What to write: a size, maybe cut, and the form of a directory or ""."""
    if kind not in kinds():
        raise ValueError(f"no size {kind!r}: there are {', '.join(kinds())}")
    size, _, form = kind.partition("-")
    shape = SIZES[size]
    return (shape if layers is None else shape.cut(layers)), form


# ---- the command line


Parts = Mapping[str, tuple[int, int]]  # number of tensors and bytes, by type


def _parts(shape: Shape, form: str) -> Parts:
    return directory.parts(shape, form) if form else gguf_file.parts(shape)


def _show(shape: Shape, form: str, *, cut: bool) -> None:
    """Print the content of a model by type, beside the released one."""
    parts = _parts(shape, form)
    rows = [
        [name, str(number or ""), f"{size:,}"] for name, (number, size) in parts.items()
    ]
    numbers, sizes = zip(*parts.values(), strict=True)
    rows.append(["in all", str(sum(numbers)), f"{sum(sizes):,}"])
    if not cut:
        rows += _released(shape, form, sum(sizes), parts["metadata"][1])
    terminal.table(["", "tensors", "bytes"], rows, "lrr")


def _released(shape: Shape, form: str, own: int, metadata: int) -> list[list[str]]:
    """Rows about the released file, as far as its size is known."""
    if form in ("w4a16", "bf16", "drafter"):
        return []
    if form == "mobile":  # a directory whose file has towers too
        difference = own - metadata - shape.mobile_bytes
        return [
            ["released text tensors", "", f"{shape.mobile_bytes:,}"],
            ["difference of tensors", "", f"{difference:+,}"],
        ]
    return [
        ["released file", "", f"{shape.official_bytes:,}"],
        ["its metadata", "", f"{shape.official_bytes - own + metadata:,}"],
        ["difference", "", f"{own - shape.official_bytes:+,}"],
    ]


def _show_all() -> None:
    """Print all sizes beside the released files, then the directories."""
    rows = []
    for name, shape in SIZES.items():
        sizes = {kind: size for kind, (_, size) in gguf_file.parts(shape).items()}
        own = sum(sizes.values())
        cells = [
            f"{sizes.get(kind, 0) / 1e6:,.1f}"
            for kind in ("Q4_0", "Q6_K", "F16", "F32", "metadata")
        ]
        official = shape.official_bytes
        totals = [f"{own / 1e9:.3f}", f"{official / 1e9:.3f}", f"{own - official:+,}"]
        rows.append([name, *cells, *totals])
    header = ["", "Q4_0 MB", "Q6_K MB", "F16 MB", "F32 MB", "metadata MB"]
    terminal.table(
        [*header, "in all GB", "released GB", "difference B"], rows, "l" + "r" * 8
    )
    terminal.line()
    terminal.line(
        "Tensors are the same to the byte. The difference is metadata: a made-up\n"
        "vocabulary with other words and fewer merges, and a short chat template."
    )
    terminal.line()
    rows = []
    for kind in kinds()[len(SIZES) :]:
        parts = _parts(*_shape(kind, None))
        numbers, sizes = zip(*parts.values(), strict=True)
        rows.append([kind, str(sum(numbers)), f"{sum(sizes) / 1e9:.3f}"])
    terminal.table(["directory", "tensors", "in all GB"], rows, "lrr")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=kinds(), metavar="KIND")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT")
    parser.add_argument("--layers", type=int, help="cut the model, in whole periods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--list", action="store_true", help="show all kinds")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what there would be"
    )
    options = parser.parse_args(argv)
    if not options.list and options.kind is None:
        parser.error("a size or --list is needed: " + ", ".join(kinds()))
    if not (options.list or options.dry_run) and options.out is None:
        parser.error("a place to write to or --dry-run is needed")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments; write, or show what would be written."""
    options = _parse(argv)
    try:
        if options.list:
            _show_all()
        elif options.dry_run:
            shape, form = _shape(options.kind, options.layers)
            _show(shape, form, cut=options.layers is not None)
        else:
            with terminal.progress(options.out.name) as update:
                write(
                    options.out,
                    options.kind,
                    layers=options.layers,
                    seed=options.seed,
                    force=options.force,
                    progress=update,
                )
    except (OSError, ValueError) as error:
        raise SystemExit(f"synthetic.py: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
