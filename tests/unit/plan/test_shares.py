"""What is left of costs: by hand, what is not known is drawn to the others, and nothing is told by nothing."""

from __future__ import annotations

import pytest

from compress.core.types import Sensitivity
from compress.plan.shares import LEAST, Shares, shares

ROLES = {"a.v": "v", "b.v": "v", "a.up": "up", "b.up": "up"}
COSTS = {"a.v": 0.3, "b.v": 0.1, "a.up": 0.2, "b.up": 0.2}
COUNTS = [10, 10, 10, 10]


def told(v: list[float], up: list[float], loss: float) -> Shares:
    """Each layer of a role has half of its part; parts are of four texts."""
    parts = {name: [value / 2 for value in (v if role == "v" else up)] for name, role in ROLES.items()}
    return shares(parts, COSTS, ROLES, COUNTS, loss)


def test_quotients_by_role_that_add_up_to_the_loss() -> None:
    """Alike in every text, so that nothing is doubted: v has a tenth of its cost left, up three quarters."""
    found = told([0.4] * 4, [3.0] * 4, 0.34)
    assert found.by_role == {"v": pytest.approx(0.1), "up": pytest.approx(0.75)}
    assert found.rest == pytest.approx(0.34 / 0.8)
    twice = told([0.4] * 4, [3.0] * 4, 0.68)  # corrections lost as much again
    assert twice.by_role == {"v": pytest.approx(0.2), "up": pytest.approx(1.5)}


def test_layers_of_a_role_have_shares_of_their_own() -> None:
    """Of up, a has twice what b has left, in every text: 4/3 and 2/3 of what the role has. All of it is the loss."""
    parts = {"a.v": [0.2] * 4, "b.v": [0.2] * 4, "a.up": [2.0] * 4, "b.up": [1.0] * 4}
    found = shares(parts, COSTS, ROLES, COUNTS, 0.34)
    assert found.own["a.up"] == pytest.approx(4 / 3)
    assert found.own["b.up"] == pytest.approx(2 / 3)
    assert found.own["b.v"] == pytest.approx(3 * found.own["a.v"])  # as much is left of a third of the cost
    costs = [Sensitivity(name, "int4", cost, cost, cost, 4.0, 0.1) for name, cost in COSTS.items()]
    assert sum(one.value for one in found.of(costs, ROLES)) == pytest.approx(0.34)


def test_a_layer_that_texts_do_not_agree_on_is_as_its_role() -> None:
    parts = {"a.v": [0.2] * 4, "b.v": [0.2] * 4, "a.up": [12.0, -8.0, 12.0, -8.0], "b.up": [-9.0, 11.0, -9.0, 11.0]}
    found = shares(parts, COSTS, ROLES, COUNTS, 0.34)
    assert found.own["a.up"] == pytest.approx(1.0, abs=0.05)
    assert found.own["b.up"] == pytest.approx(1.0, abs=0.05)


def test_what_texts_do_not_agree_on_is_drawn_to_the_others() -> None:
    """The mean of all is .425, of v .1 and of up .75; texts that say -8 and 8.8 leave v where all are."""
    found = told([-8.0, 8.8, -8.0, 8.8], [3.0] * 4, 0.34)
    assert found.by_role["v"] == pytest.approx(found.rest, rel=0.1)
    assert found.by_role["up"] > 1.5 * found.by_role["v"]
    assert 0.4 * found.by_role["v"] + 0.4 * found.by_role["up"] == pytest.approx(0.34)


def test_a_role_never_costs_nothing() -> None:
    found = told([-2.0] * 4, [3.0] * 4, 0.34)
    assert found.by_role["v"] == pytest.approx(LEAST * found.rest)


@pytest.mark.parametrize("loss", [0.0, -1.0, float("nan")])
def test_a_trial_that_lost_nothing_tells_nothing(loss: float) -> None:
    assert told([0.4] * 4, [3.0] * 4, loss) == Shares({}, 1.0)
    assert told([-4.0] * 4, [3.0] * 4, 0.34) == Shares({}, 1.0)


def test_costs_as_they_are_in_a_built_model() -> None:
    found = [Sensitivity(name, "int4", 1.0, 0.5, 2.0, 4.0, 0.1) for name in ("a.v", "a.up", "embedding")]
    made = Shares({"v": 0.1}, 0.5).of(found, ROLES)
    assert [(one.value, one.low, one.high) for one in made] == [(0.1, 0.05, 0.2), (0.5, 0.25, 1.0), (0.5, 0.25, 1.0)]
