"""From what layers cost to the plan that is built: readings of the costs, judged on text; the frontier; repair.

The calibration texts say what layers cost (and give the bank its codes), others judge plans made of them, so that codes
are not judged by the text that they were fitted to: documents that no other text is of, or, where there are too few, a
quarter of the calibration texts. No plan is seen on held-out text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from compress.core.journal import Journal
from compress.core.numerics.bootstrap import bootstrap
from compress.core.types import LayerPlan, Sensitivity, TokenSet
from compress.pipeline.allowed import SPARE, expected_bounds, parse_share
from compress.pipeline.bank import Bank
from compress.pipeline.draws import Draws, Picks
from compress.pipeline.gauge import Gauge, Seen
from compress.pipeline.likelihood import Answers
from compress.pipeline.marginal import TOKENS, Marginal, Moves
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import Prepared, make_streams, traces_of
from compress.pipeline.profiling import Chosen, Profiling, texts_of
from compress.pipeline.replay import Trace
from compress.pipeline.store import Store
from compress.pipeline.stream import Report, corrects
from compress.plan import budget
from compress.plan.activations import in_float
from compress.plan.budget import Limit, Planned
from compress.plan.variants import at_a_plan, expected, variants

EVERY = 4
"""One text of so many judges where there is no text beside that of calibration."""
JUDGE_TOKENS = 4096
POINTS = 6
"""Budgets of the frontier."""
CHANGES = 5
"""Single changes of a plan that are measured."""
TURNS, TRUSTS = 2, (0.25, 0.5, 1.0)
"""How often the best plan is asked what would help it, and how much that may count beside what layers cost alone: it is
asked by two draws of few texts, and plans pick what looks best. Which, is judged."""
AGAIN = "asked again"
FRONTIER = "frontier"
"""The name of what is judged first for --max-drop."""
ROUNDS = 6
"""Of repair at most."""
SAFER = 16.0
"""How much less the second plan for --max-drop loses on the judging text: a quarter of the answers change."""


@dataclass(frozen=True)
class Judged:
    """A plan and what it lost on the judging text, in the unit of the profile."""

    name: str
    planned: Planned
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Planning:
    """Everything that planning works with. store: its own, with its own work folder."""

    ready: Prepared
    chosen: Chosen
    limits: Sequence[Limit]
    store: Store
    outside: Outside
    journal: Journal
    report: Report

    @property
    def bank(self) -> Bank:
        """Codes of every layer at every scheme."""
        return Bank(self.store.work, {plan.scheme for plans in self.chosen.values() for plan in plans})

    @property
    def _every(self) -> int:
        """One text of so many judges; of changed answers, which are counted, it takes many."""
        return 2 if self.ready.recipe.max_drop else EVERY

    @property
    def share(self) -> float:
        """Of the texts, about, that say what layers cost."""
        return 1.0 if self._beside is not None else 1 - 1 / self._every

    @property
    def _beside(self) -> TokenSet | None:
        """The text that judges beside that of calibration, if there is any."""
        return self.ready.data.judging if self.ready.data is not None else None

    @property
    def builds(self) -> bool:
        """Whether tokens of builds count by gradients, and a trial is built where bits are few enough: where layers
        make good what earlier ones lost, inputs are not rounded, it is not to be fast, and it is not --max-drop, which
        judges its own plans."""
        recipe = self.ready.recipe
        alone = all(plan.activation is None for plans in self.chosen.values() for plan in plans)
        return alone and recipe.effort != "fast" and not recipe.max_drop and corrects(self.ready.plan)

    def profile(self) -> tuple[list[Sensitivity], dict[str, Any]]:
        """What each layer costs at each scheme, and in what unit, over how many answers."""
        traces, answers = self.texts(judging=False)
        place = self.store.work.parent if self.builds else None
        loop = Profiling(self.ready, self.chosen, self.store, self.outside, self.bank, self.journal, self.report, place)
        return loop.sensitivities(traces, answers, "gradient")

    def texts(self, judging: bool, most: int = JUDGE_TOKENS) -> tuple[list[Trace], Answers]:
        """The calibration texts that say what layers cost, or those that judge plans, `most` tokens; with their
        answers."""
        beside = self._beside if judging else None
        given = make_streams(self.ready).calibration if beside is None else traces_of(self.ready, beside)
        traces, features = texts_of(self.ready, given)
        numbers = self._numbers(len(traces), judging)
        if judging:
            numbers = _short(traces, numbers, most * (4 if self.ready.recipe.max_drop else 1))
        mine = [features[n] for n in numbers] if features else []
        answers = Answers(self.ready.checkpoint.model, self.ready.text, mine, self.ready.recipe.seed)
        return [traces[n] for n in numbers], answers

    def _numbers(self, count: int, judging: bool) -> list[int]:
        """Which of `count` texts judge, or do not."""
        few = count < self._every or self._beside is not None
        return [n for n in range(count) if few or self._judges(n, count) == judging]

    def importance(self) -> tuple[int, list[int]]:
        """How many texts calibrate, and which of them have been asked about."""
        count = len(texts_of(self.ready, make_streams(self.ready).calibration)[0])
        return count, self._numbers(count, judging=False)

    def _judges(self, number: int, count: int) -> bool:
        """Whether text `number` of `count` judges. Rows are apart from each other, in batches by length; sequences are
        cut from documents one after the other, and a neighbour has parts of the same."""
        if self.ready.text is not None:
            return number % self._every == self._every - 1
        return number >= count - count // self._every

    def judge(self, name: str, plans: Sequence[Planned]) -> tuple[list[Seen], list[int], str]:
        """What is seen of each plan on the judging text, the answers of each text, and the unit of losses."""
        line = next((line for line in self.journal.of("judged") if line["name"] == name), None)
        if line is None:
            traces, answers = self.texts(judging=True)
            gauge = Gauge(answers, len(plans))
            picks = [_picks(planned, self.chosen) for planned in plans]
            Draws(self.ready, self.outside, self.bank, self.report).run(picks, [t.inputs for t in traces], gauge)
            counts = [answers.counts[n] for n in range(len(traces))]
            rows = [seen.to_json() for seen in gauge.seen]
            more = {"doubt": gauge.doubt / sum(counts), "unseen": self._unseen()} if name == FRONTIER else {}
            self.journal.append("judged", name=name, seen=rows, counts=counts, unit=answers.unit, **more)
            line = self.journal.lines[-1]
        seen = [Seen(**{**row, "nats": [tuple(pair) for pair in row["nats"]]}) for row in line["seen"]]
        return seen, list(line["counts"]), str(line["unit"])

    def _unseen(self) -> float | None:
        """The original's doubt on held-out rows; None where nothing is to be shown on rows with answers."""
        ready = self.ready
        if not ready.recipe.max_drop or ready.text is None or not ready.text.task.classes:
            return None
        features = [tuple(ready.text.heldout[n] for n in batch) for batch in ready.text.heldout_batches]
        answers = Answers(ready.checkpoint.model, ready.text, features, ready.recipe.seed)
        gauge = Gauge(answers, 0)
        Draws(ready, self.outside, self.bank, self.report).run([], ready.text.inputs(False), gauge)
        return gauge.doubt / max(1, sum(answers.counts.values()))

    def best(self, found: Sequence[Sensitivity]) -> list[Judged]:
        """The plans for the limits under several readings of the costs, best measured first."""

        def within(chosen: Chosen, costs: Sequence[Sensitivity]) -> Planned:
            made = self.within(costs, chosen)
            loss, low, high = expected(made, self.chosen, found)
            return replace(made, loss=loss, low=low, high=high)

        made = variants(within, self.chosen, found)
        judged = sorted(self.measured("readings", list(made.values()), list(made)), key=lambda one: one.loss)
        for turn in range(TURNS if self._asks else 0):
            best = judged[0]
            moves = self._moves(f"readings {turn}", best.planned)
            plans = [within(self.chosen, at_a_plan(found, moves, best.planned, trust)) for trust in TRUSTS]
            steps = self.measured(f"readings, turn {turn}", plans, [AGAIN] * len(plans))
            judged = sorted([*judged, min(steps, key=lambda one: one.loss)], key=lambda one: one.loss)
            if judged[0] is best:
                break
        return judged

    def within(self, found: Sequence[Sensitivity], chosen: Chosen | None = None) -> Planned:
        """The best plan for the limits, of what may be `chosen`. Raises BudgetError when there is none."""
        return budget.within(self.limits, self.ready.plan, self.ready.structure, chosen or self.chosen, found)

    @property
    def _asks(self) -> bool:
        """Whether plans are asked what would help them: weights alone, and not when it is to be fast."""
        alone = all(plan.activation is None for plans in self.chosen.values() for plan in plans)
        return alone and self.ready.recipe.effort != "fast"

    def _moves(self, name: str, planned: Planned) -> Moves:
        """What other choices would do to a plan, on the texts that costs were asked on."""
        line = next((line for line in self.journal.of("moves") if line["name"] == name), None)
        if line is None:
            traces, answers = self.texts(judging=False)
            blocks = self.ready.structure.blocks
            for block in {block.stack: block for block in blocks}.values():
                self.store.read_state(block, traces)
            few = _short(traces, range(len(traces)), TOKENS)
            draws = Draws(self.ready, self.outside, self.bank, self.report)
            moves = Marginal(draws, self.store, self.report).moves(
                _picks(planned, self.chosen), [traces[n] for n in few], answers
            )
            self.journal.append("moves", name=name, rows=[[*key, value] for key, value in moves.items()])
            line = self.journal.lines[-1]
        return {(layer, treatment): value for layer, treatment, value in line["rows"]}

    def measured(self, name: str, plans: Sequence[Planned], names: Sequence[str]) -> list[Judged]:
        """Plans with what they lost on the judging text."""
        seen, counts, _ = self.judge(name, plans)
        return [
            Judged(n, planned, *mean_of(one.losses, counts)) for n, planned, one in zip(names, plans, seen, strict=True)
        ]

    def frontier(self, found: Sequence[Sensitivity], points: int = POINTS, whole: bool = True) -> list[Planned]:
        """The best plans for sizes from the smallest to the largest, smallest first. whole: past the limit of bytes."""
        size = self._size
        limits = [replace(one, limit=math.inf) if whole and one.kind == budget.BYTES else one for one in self.limits]
        low, high = budget.range_of(limits, self.ready.structure, self.chosen)
        parts = np.geomspace(max(low - size.fixed, 1), max(high - size.fixed, 1), points)
        sizes = [low, *(size.fixed + part for part in parts[1:-1]), high]
        made = [self.at(found, limit, whole) for limit in sizes]
        return [p for n, p in enumerate(made) if n == 0 or p.totals[budget.BYTES] > made[n - 1].totals[budget.BYTES]]

    @property
    def _size(self) -> Limit:
        return next(one for one in self.limits if one.name == budget.BYTES)

    def at(self, found: Sequence[Sensitivity], limit: float, whole: bool = False) -> Planned:
        """The best plan of `limit` bytes that keeps the other limits; whole: but those of other files."""
        limits = [replace(one, limit=limit) if one.name == budget.BYTES else one for one in self.limits]
        if whole:
            limits = [replace(one, limit=math.inf) if budget.OF in one.name else one for one in limits]
        return budget.within(limits, self.ready.plan, self.ready.structure, self.chosen, found)

    def smallest(self, found: Sequence[Sensitivity]) -> tuple[list[Planned], list[Judged]]:
        """The plans to be tried for `--max-drop`, one or two, and the frontier that they were found on."""
        limit = SPARE * parse_share(self.ready.recipe.max_drop)
        points = self.frontier(found, POINTS + 2, whole=False)
        bounds = self._bounds(FRONTIER, points)
        good = next((n for n, bound in enumerate(bounds) if bound <= limit), len(points) - 1)
        made = points[good]
        if good > 0:
            few, many = (points[n].totals[budget.BYTES] for n in (good - 1, good))
            between = [self.at(found, few + (many - few) * share) for share in (0.25, 0.5, 0.75)]
            finer = self._bounds("finer", between)
            fits = next((n for n, bound in enumerate(finer) if bound <= limit), len(between))
            made = between[fits] if fits < len(between) else made
            over = between[fits - 1] if fits else points[good - 1]
            made = self._repaired(found, over, made, limit)
            loss, low, high = expected(made, self.chosen, found)
            made = replace(made, loss=loss, low=low, high=high)
        shown = self.measured(FRONTIER, points, [""] * len(points))
        lost = self.measured("first", [made], [""])[0].loss
        safer = next((one.planned for one in shown if one.loss <= lost / SAFER), self.at(found, self._size.limit))
        return ([made, safer] if safer.totals[budget.BYTES] > made.totals[budget.BYTES] else [made]), shown

    def _bounds(self, name: str, plans: Sequence[Planned]) -> list[float]:
        seen, counts, unit = self.judge(name, plans)
        # the rate of changed answers is that of the frontier, whose small plans change many
        more, _, _ = self.judge(FRONTIER, []) if name != FRONTIER else ([], [], "")
        line = next(line for line in self.journal.of("judged") if line["name"] == FRONTIER)
        doubt = line["unseen"] / line["doubt"] if line["unseen"] and line["doubt"] else 1.0
        return expected_bounds(self.ready, [*more, *seen], counts, unit, doubt)[len(more) :]

    def _repaired(self, found: Sequence[Sensitivity], over: Planned, fits: Planned, limit: float) -> Planned:
        """`over`, which loses too much, with upgrades of most measured gain for their bytes until it does not; `fits`,
        which does not, where that takes as many bytes."""
        made = over
        before = self.measured("before repair", [made], [""])[0].loss
        for turn in range(ROUNDS):
            steps = budget.upgrades(made, self.limits, self.ready.structure, self.chosen, found)[:CHANGES]
            steps = [step for step in steps if step.totals[budget.BYTES] < fits.totals[budget.BYTES]]
            if not steps:
                return fits
            judged = self.measured(f"repair {turn}", steps, [""] * len(steps))
            bounds = self._bounds(f"repair {turn}", steps)
            size = made.totals[budget.BYTES]
            gains = [(before - one.loss) / (one.planned.totals[budget.BYTES] - size) for one in judged]
            best = int(np.argmax(gains))
            made, before = judged[best].planned, judged[best].loss
            if bounds[best] <= limit:
                return made
        return fits

    def changes(self, planned: Planned, found: Sequence[Sensitivity]) -> list[Judged]:
        """The plan itself and the single upgrades of it that promise most, measured; named after what changes."""
        steps = budget.upgrades(planned, self.limits, self.ready.structure, self.chosen, found, best=True)[:CHANGES]
        names = [budget.changed(planned, step) for step in steps]
        return self.measured("changes", [planned, *steps], ["", *names])


def _picks(planned: Planned, chosen: Chosen) -> Picks:
    """What a plan does to layers that it does not keep."""
    plans = {name: planned.plan.layers[name] for name in chosen}
    return {name: plan.treatment for name, plan in plans.items() if plan.scheme.kind != "dense"}


def mean_of(losses: Sequence[float], counts: Sequence[int]) -> tuple[float, float, float]:
    """Loss an answer, and its 95 % interval over texts."""
    sums = np.array([losses, counts], np.float64).T
    values, bounds = bootstrap(sums, lambda totals: totals[:, :1] / totals[:, 1:], 0)
    value, (low, high) = float(values[0]), bounds[0]
    return value, value if low is None else low, value if high is None else high


def _short(traces: Sequence[Trace], numbers: Iterable[int], most: int) -> list[int]:
    """The first of them that hold so many tokens."""
    found, tokens = [], 0
    for number in numbers:
        if tokens >= most:
            break
        found.append(number)
        tokens += max(tensor.numel() for tensor in traces[number].inputs.values())
    return found


def treated(planned: Planned, chosen: Chosen) -> dict[str, list[str]]:
    """Layer -> treatment and reason, for the journal."""
    return {name: [plan.treatment, plan.reason] for name, plan in planned.plan.layers.items() if name in chosen}


def as_planned(ready: Prepared, chosen: Chosen, rows: dict[str, list[str]], totals: dict[str, float]) -> Prepared:
    """The run with the plan that the journal has."""
    layers: dict[str, LayerPlan] = dict(ready.plan.layers)
    for name, (treatment, reason) in rows.items():
        layers[name] = replace(next(p for p in chosen[name] if p.treatment == treatment), reason=reason)
    layers = budget.tied(layers, ready.structure)
    size, time = round(totals[budget.BYTES]), totals.get(budget.MS)
    floats = in_float(layers.values())
    made = replace(ready.plan, layers=layers, predicted_bytes=size, predicted_ms=time, in_float=floats)
    return replace(ready, plan=made)
