# python/halfbyte/lineage/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""Where a file's weights come from.

`identity` knows published files by their hashes, `hints` reads what a file says of
itself, `traces` counts what training and quantizers leave in weights, `evidence` shows
that, and `judge` draws the conclusion.
"""

from halfbyte.lineage.evidence import Evidence
from halfbyte.lineage.hints import Hint
from halfbyte.lineage.judge import Lineage, Verdict, lineage
from halfbyte.lineage.traces import TensorTrace

__all__ = ["Evidence", "Hint", "Lineage", "TensorTrace", "Verdict", "lineage"]
