"""Settings of every test: one torch thread (tiny matrices gain nothing from more); a fixture of several folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def in_process() -> Iterator[None]:
    """Runtimes of our own environment run in the process of the test."""
    from tests import exporting

    with exporting.in_process():
        yield
