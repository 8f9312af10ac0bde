# examples/qat/pack.py
# What the package ships of the tiny model, from what measure.py trained.
# SPDX-License-Identifier: Apache-2.0
"""Pack two students as ``halfbyte.load("tiny")`` and ``"tiny-mobile"``.

``python pack.py OUT/q4_0-0 OUT/mobile-2 DATA`` reads two directories that measure.py
wrote, and writes ``DATA/tiny-q4_0.gguf`` and ``DATA/tiny-mobile/``; in the repository
DATA is python/halfbyte/data. The same students give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import halfbyte

FILES = (
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def main() -> None:
    """Pack both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("q4_0", type=Path, help="a student of Q4_0")
    parser.add_argument("mobile", type=Path, help="one of the mobile form")
    parser.add_argument("data", type=Path, help="where the package has its models")
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    pack_q4_0(args.q4_0, args.data / "tiny-q4_0.gguf")
    copy_mobile(args.mobile, args.data / "tiny-mobile")


def pack_q4_0(student: Path, target: Path) -> None:
    """Convert, and make sure that every matrix kept what was trained."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "halfbyte-tiny"  # a GGUF file is named as its source is
        shutil.copytree(student, named)
        made = Path(folder) / target.name
        report = halfbyte.convert(named, made, format="q4_0")
        print(report)
        # Q6_K is what tables off the lattice become.
        lost = [
            role.role
            for role in report.roles
            if role.type == "Q6_K" or (role.type == "Q4_0" and role.share("off"))
        ]
        if lost:
            raise SystemExit(f"{student}: off the lattice of Q4_0: {', '.join(lost)}")
        shutil.copyfile(made, target)


def copy_mobile(student: Path, target: Path) -> None:
    """Take what a loader reads; the student is packed already."""
    target.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(student / name, target / name)
    config = json.loads((student / "config.json").read_text())
    config.pop("_name_or_path", None)  # a folder of the machine that trained it
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
