"""What fits and what is fast, with memory that runs out on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.core.errors import ModelError
from compress.train.fit import bf16_gain, largest_batch


class Machine:
    """A model and a loss that has room for so many rows at once."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    def loss(self, items: Sequence[Any]) -> Tensor:
        self.tried.append(len(items))
        if len(items) > self.room:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate much")
        found: Tensor = self.model(torch.ones(len(items), 4)).sum()
        return found


def test_a_batch_is_halved_until_it_fits_and_nothing_is_changed() -> None:
    machine = Machine(room=9)
    machine.model.eval()
    before = {name: value.clone() for name, value in machine.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert largest_batch(machine.model, list(range(100)), machine.loss, 48) == 6
    assert machine.tried == [48, 24, 12, 6]
    assert torch.equal(torch.rand(2), expected)
    assert not machine.model.training
    assert all(torch.equal(value, before[name]) for name, value in machine.model.state_dict().items())
    assert all(p.grad is None for p in machine.model.parameters())


def test_no_row_fits() -> None:
    machine = Machine(room=0)
    with pytest.raises(ModelError, match="not even a batch of one row fits into memory; use a shorter --max-length"):
        largest_batch(machine.model, list(range(10)), machine.loss, 8)


def test_other_errors_are_not_taken_for_memory() -> None:
    machine = Machine(room=9)
    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch(machine.model, [1, 2], lambda _: (_ for _ in ()).throw(RuntimeError("shapes differ")), 2)


def test_the_gain_of_bfloat16_is_a_ratio_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(room=9)
    clock = [0.0]

    def loss(items: Sequence[Any]) -> Tensor:
        clock[0] += 1.0 if torch.is_autocast_enabled("cpu") else 3.0
        return machine.loss(items)

    monkeypatch.setattr("compress.train.fit.time.perf_counter", lambda: clock[0])
    assert bf16_gain(machine.model, [1, 2], loss) == 3.0
