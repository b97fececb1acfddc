"""How a stage talks to whoever called it, and how it keeps time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Report = Callable[[str, int, int], None]  # stage, done, total


def _silent(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Hooks:
    """How the stage talks: `report(stage, done, total)` for progress, `say(sentence)` for notes."""

    report: Report = _silent
    say: Callable[[str], None] = _silent


@dataclass
class Stages:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def done(self, name: str) -> None:
        """Book the time since the last call under `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
