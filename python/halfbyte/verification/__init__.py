# python/halfbyte/verification/__init__.py
# SPDX-License-Identifier: Apache-2.0
"""Whether a file is whole, and says what another one says.

`contents` reads every byte of its tensors, `agreement` compares what two models predict,
and `verifier` puts both together.
"""

from halfbyte.verification.agreement import Agreement
from halfbyte.verification.verifier import Progress, Verification, verify

__all__ = ["Agreement", "Progress", "Verification", "verify"]
