# python/halfbyte/cli/options.py
# The arguments that several commands share, worded once.
# SPDX-License-Identifier: Apache-2.0
"""Shared arguments and options."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Annotated

import typer

__all__ = [
    "MODELS",
    "ActivationMode",
    "Activations",
    "Context",
    "Debug",
    "Draft",
    "Json",
    "Kv",
    "KvType",
    "MaxTokens",
    "MinP",
    "ModelArgument",
    "Quantize",
    "Quiet",
    "RepeatPenalty",
    "Seed",
    "ShowThoughts",
    "System",
    "Temperature",
    "Think",
    "Threads",
    "TopK",
    "TopP",
]


class ActivationMode(str, Enum):
    """What `halfbyte.load` knows; typer before 0.19 takes no Literal."""

    AUTO = "auto"
    STATIC = "static"
    DYNAMIC = "dynamic"
    F32 = "f32"


class KvType(str, Enum):
    """What `halfbyte.load` knows."""

    F32 = "f32"
    F16 = "f16"
    INT8 = "int8"


def _range(
    shown: str, holds: Callable[[float], bool]
) -> Callable[[float | None], float | None]:
    """Check of a range without one of its ends: typer's ranges have both."""

    def check(value: float | None) -> float | None:
        if value is not None and not holds(value):
            raise typer.BadParameter(f"{value} is not in the range {shown}.")
        return value

    return check


MODELS = (
    "A GGUF file, a Hugging Face directory, or the name of a model: tiny (in the "
    "package), OWNER/REPO (:TYPE, @REVISION), ollama:NAME:TAG, lmstudio:PUBLISHER/MODEL"
)
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=f"{MODELS}; without it the demo model.",
        show_default=False,
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        "-n", "--max-tokens", min=0, help="Tokens to write at most.", metavar="N"
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temp",
        callback=_range("0.0<=x<inf", lambda x: 0 <= x < math.inf),
        help="0 takes the likeliest token.  [0.0<=x<inf]",
        metavar="T",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", min=0, help="Keep the K likeliest; 0 = all.", metavar="K"),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        callback=_range("0.0<x<=1.0", lambda x: 0 < x <= 1),
        help="Keep the likeliest that sum to P; 1 = all.  [0.0<x<=1.0]",
        metavar="P",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        callback=_range("0.0<=x<1.0", lambda x: 0 <= x < 1),
        help="Drop what is below P times the likeliest; 0 = none.  [0.0<=x<1.0]",
        metavar="P",
    ),
]
RepeatPenalty = Annotated[
    float | None,
    typer.Option(
        "--repeat-penalty",
        callback=_range("0.01<=x<inf", lambda x: 0.01 <= x < math.inf),
        help="Above 1 discourages tokens already there.  [0.01<=x<inf]",
        metavar="R",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**64 - 1,
        help="The same seed gives the same text.",
        metavar="N",
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "-s",
        "--system",
        help="Instructions ahead of the conversation.",
        metavar="TEXT",
    ),
]
Think = Annotated[
    bool, typer.Option("--think", help="Let the model think before it answers.")
]
ShowThoughts = Annotated[
    bool,
    typer.Option(
        "--show-thoughts", help="Show what it thinks, on stderr; with --think."
    ),
]
Draft = Annotated[
    int | None,
    typer.Option(
        "--draft",
        min=0,
        max=16,  # MAX_DRAFT of halfbyte.model, which help does not wait for
        help="Tokens to guess ahead at most, with --drafter 8; same answer.",
        metavar="N",
    ),
]
Drafter = Annotated[
    str | None,
    typer.Option(
        "--drafter",
        help="The model's drafter, which guesses ahead; a MODEL.",
        metavar="MODEL",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads; without it, what doctor says.",
        metavar="N",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        min=1,
        help="Tokens that prompt and answer may fill.",
        metavar="N",
    ),
]
Activations = Annotated[
    ActivationMode | None,
    typer.Option(
        "--activations",
        help="Rounding of inputs: auto (as trained), static, dynamic or f32.",
        metavar="MODE",
    ),
]
Kv = Annotated[
    KvType,
    typer.Option("--kv", help="Keys and values: f32, f16 or int8.", metavar="TYPE"),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        help="Round float matrices as they are loaded, to q4_0 or the like.",
        metavar="FORMAT",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="A traceback with an error.")]
