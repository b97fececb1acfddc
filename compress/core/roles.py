"""What a linear map is called in the field, looked up in roles.json: names are data, so they are a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

OTHER = "other"
"""The role of a name that is not in the table."""


@dataclass(frozen=True)
class Roles:
    """The table. roles: dotted suffix -> role. cross: path parts of attention over the encoder's output.

    order: roles in execution order. steps: roles that read what the roles of the steps before have made, and nothing
    of each other. fused: roles that servers put into one matrix. routers: modules that choose experts, never quantized.
    """

    roles: dict[str, str]
    cross: frozenset[str]
    order: tuple[str, ...]
    steps: tuple[tuple[str, ...], ...]
    fused: tuple[tuple[str, ...], ...]
    routers: frozenset[str]

    def of(self, path: str) -> str:
        """The role of the module at `path` in its block: `0.SelfAttention.q` -> `q_proj`; or `other`."""
        parts = [part for part in path.split(".") if not part.isdigit()]
        for start in range(len(parts)):
            role = self.roles.get(".".join(parts[start:]))
            if role is not None:
                return self._crossed(role, parts)
        return OTHER

    def _crossed(self, role: str, parts: list[str]) -> str:
        crossed = f"cross_{role}"
        return crossed if crossed in self.order and not self.cross.isdisjoint(parts) else role

    def step(self, role: str) -> int | None:
        """Which step of a block `role` belongs to; None for an unknown one."""
        return next((n for n, roles in enumerate(self.steps) if role in roles), None)

    def rank(self, role: str) -> int:
        """Position of `role` in execution order inside a block; unknown roles come last."""
        return self.order.index(role) if role in self.order else len(self.order)


@cache
def load_roles() -> Roles:
    """The table of roles.json; read once, frozen."""
    table = json.loads(Path(__file__).with_name("roles.json").read_text(encoding="utf-8"))
    return Roles(
        roles=table["roles"],
        cross=frozenset(table["cross"]),
        order=tuple(table["order"]),
        steps=tuple(tuple(step) for step in table["steps"]),
        fused=tuple(tuple(group) for group in table["fused"]),
        routers=frozenset(table["routers"]),
    )
