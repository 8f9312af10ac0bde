# python/halfbyte/conversion/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""From one model file to another.

`plan` has the words that the others share. A planner makes a `Plan` of a source;
`stream` fills a `Draft` by it, with what `encoders` make of the weights; a container
such as `gguf` knows where tensors lie in a file.
"""

from halfbyte.conversion.converter import convert, tensor_file
from halfbyte.conversion.repair import RepairReport, repair
from halfbyte.conversion.report import COLUMNS, Report, RoleReport, TensorReport
from halfbyte.draft import Leftover, leftovers, remove

__all__ = [
    "COLUMNS",
    "Leftover",
    "RepairReport",
    "Report",
    "RoleReport",
    "TensorReport",
    "convert",
    "leftovers",
    "remove",
    "repair",
    "tensor_file",
]
