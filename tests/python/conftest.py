# tests/python/conftest.py
# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test module may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import halfbyte
import pytest
from halfbyte import demo

# A shell's background job ignores SIGINT, and so would every process started from here:
# Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=halfbyte.cpu_targets())
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set this CPU has."""
    with halfbyte.use_target(request.param):
        assert halfbyte.cpu_target() == request.param
        yield request.param


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tiny model that never ends an answer, and give its path.

    ``tiny_gguf(name="e2b", context=256, types=None, tokenizer=True)``; the same
    arguments give the same file.
    """
    import tiny  # takes torch and transformers with it: only where it is used

    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def make(
        name: str = "e2b",
        *,
        context: int = 256,
        types: Callable[[str], Any] | None = None,
        tokenizer: bool = True,
    ) -> Path:
        model = tiny.talkative(name, wide=types is not None)
        path = folder / f"{name}-{context}-{len(list(folder.iterdir()))}.gguf"
        options = {} if types is None else {"types": types}
        extra = {"context_length": context}
        return tiny.save_gguf(model, path, tokenizer=tokenizer, extra=extra, **options)

    return make


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Give the Gemma 3 270M file of the extra ``demo``; in CI it must be there."""
    try:
        return demo.model_path()
    except demo.DemoNotInstalledError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
