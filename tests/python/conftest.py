# tests/python/conftest.py
# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test module may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import halfbyte


@pytest.fixture(params=halfbyte.cpu_targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set this CPU has."""
    with halfbyte.use_target(request.param):
        assert halfbyte.cpu_target() == request.param
        yield request.param
