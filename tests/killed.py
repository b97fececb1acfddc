"""A run that dies after every journal line of some kinds and is begun again, until it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest

from compress.core.journal import Journal

MOST = 60


def killed_after(monkeypatch: pytest.MonkeyPatch, kinds: Collection[str], act: Callable[[], Any]) -> list[str]:
    """Call `act` until it returns, interrupted after each line of `kinds`; the kinds of those lines, in order.

    Fails when it has not ended after MOST times.
    """
    append, deaths = Journal.append, []

    def dies(self: Journal, kind: str, **fields: Any) -> None:
        append(self, kind, **fields)
        if kind in kinds:
            deaths.append(kind)
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Journal, "append", dies)
        for _ in range(MOST):
            try:
                act()
            except KeyboardInterrupt:
                continue
            return deaths
    pytest.fail(f"killed {MOST} times and not done; the last lines were {deaths[-3:]}")
