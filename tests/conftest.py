"""Settings of every test: one torch thread (tiny matrices gain nothing from more), no runtimes but our own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def only_our_own_runtimes(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is installed on a machine must not change what `make test` does."""
    if request.node.get_closest_marker("runtimes") is None and "test_environments" not in request.node.nodeid:
        from export import environments

        nowhere = tmp_path_factory.getbasetemp() / "no-runtimes"
        monkeypatch.setattr(environments, "folder", lambda: nowhere)


@pytest.fixture
def in_process() -> Iterator[None]:
    """Runtimes of our own environment run in the process of the test."""
    from tests import exporting

    with exporting.in_process():
        yield
