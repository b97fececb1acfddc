"""Architectures quantized once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.rebuild import Run, compress_in_memory, open_artifact, open_original, run
from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Quantizes an architecture once, whoever asks."""
    base = tmp_path_factory.mktemp("architectures")

    @cache
    def of(name: str) -> Run:
        return run(name, save_tiny(name, base / name), base / f"{name}-out")

    return of


@pytest.fixture(scope="session")
def models(runs: Callable[[str], Run]) -> Callable[[str], tuple[Any, Any]]:
    """The artifact as transformers opens it, and what it should be."""

    @cache
    def of(name: str) -> tuple[Any, Any]:
        return open_artifact(runs(name)), compress_in_memory(runs(name), open_original(runs(name)))

    return of
