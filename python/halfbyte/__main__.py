# python/halfbyte/__main__.py
# `python -m halfbyte` is the command `halfbyte`.
# SPDX-License-Identifier: Apache-2.0
"""Run the command line."""

import sys

from halfbyte_command import main

if __name__ == "__main__":
    sys.exit(main())
