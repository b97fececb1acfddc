"""Tuning a block by gradient: the error and its gradient against float64, and what codes and scales may become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from compress.core import registry
from compress.core.block_method import BlockMethod, BlockText, Part, Tuned
from compress.core.errors import RecipeError
from compress.core.numerics.affine import dequantize, round_to_storage
from compress.core.types import QTensor, Scheme
from compress.methods import rtn
from compress.methods.block import rounding

WIDTH, HIDDEN, BATCHES, LENGTH = 32, 48, 6, 24
FAR = 1e4  # times the way: scales become infinite


class Toy:
    """y = x + V tanh(W x), on inputs that go together; its compressed side sees other inputs than the original's."""

    def __init__(self, scheme: Scheme, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        mixing = torch.randn(WIDTH, WIDTH, generator=draw) / WIDTH**0.5
        self.x = [torch.randn(2, LENGTH, WIDTH, generator=draw) @ mixing for _ in range(BATCHES)]
        self.seen = [x + 0.05 * torch.randn(x.shape, generator=draw) for x in self.x]
        self.weights = {
            "in": torch.randn(HIDDEN, WIDTH, generator=draw) / WIDTH**0.5,
            "out": torch.randn(WIDTH, HIDDEN, generator=draw) / HIDDEN**0.5,
        }
        self.counts = torch.rand(2, LENGTH, generator=draw) + 0.5
        self.counts[1, -5:] = 0
        self.parts = {
            name: Part(weight, rtn.quantize(weight, None, scheme, rtn.Options())[0])
            for name, weight in self.weights.items()
        }
        self.wanted = [self.forward(x, self.weights) for x in self.x]

    @staticmethod
    def forward(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return x + torch.tanh(x @ weights["in"].t()) @ weights["out"].t()

    def text(self) -> BlockText:
        return BlockText(
            [int((self.counts > 0).sum())] * BATCHES,
            lambda number, weights: self.forward(self.seen[number], weights),
            lambda number: (self.wanted[number], self.counts),
        )

    def tuned(self, options: rounding.Options | None = None, seed: int = 0) -> Tuned:
        generator = torch.Generator().manual_seed(seed)
        return rounding.tune(
            self.parts, self.text(), options or rounding.Options(tokens=40, epochs=6), generator, lambda *_: None
        )

    def error(self, q: Mapping[str, QTensor]) -> float:
        """The same in float64, written out."""
        total = 0.0
        weights = {name: dequantize(each).double() for name, each in q.items()}
        for seen, wanted in zip(self.seen, self.wanted, strict=True):
            off = (self.forward(seen.double(), weights) - wanted.double()).square().mean(-1)
            total += float((off * self.counts.double())[self.counts > 0].mean())
        return total / BATCHES


def test_error_and_gradient_are_those_of_float64() -> None:
    toy = Toy(Scheme("int", 4, 16))
    layers = {name: rounding._Layer(part, rounding.Options(lean=0)) for name, part in toy.parts.items()}
    start = {name: part.q for name, part in toy.parts.items()}
    assert rounding.judged(layers, toy.text()) == pytest.approx(toy.error(start), rel=1e-5)
    found = rounding.gradients_of(layers, toy.text(), [2])
    weights = {name: dequantize(q).double() for name, q in start.items()}
    x, counts = toy.seen[2].double(), toy.counts.double()
    hidden = torch.tanh(x @ weights["in"].t())
    off = (x + hidden @ weights["out"].t() - toy.wanted[2].double()) * counts.unsqueeze(-1)
    share = 2 / (WIDTH * float((counts > 0).sum()))
    by_hand = share * off.flatten(0, 1).t() @ hidden.flatten(0, 1)
    assert torch.allclose(found["out"].double(), by_hand, atol=1e-6 * float(by_hand.abs().max()), rtol=1e-4)
    back = (off @ weights["out"]) * (1 - hidden.square())
    by_hand = share * back.flatten(0, 1).t() @ x.flatten(0, 1)
    assert torch.allclose(found["in"].double(), by_hand, atol=1e-6 * float(by_hand.abs().max()), rtol=1e-4)


def test_a_step_of_several_batches_is_their_mean_by_tokens() -> None:
    toy = Toy(Scheme("int", 4, 16))
    layers = {name: rounding._Layer(part, rounding.Options()) for name, part in toy.parts.items()}
    alone = [rounding.gradients_of(layers, toy.text(), [n]) for n in (1, 4)]
    for name, gradient in rounding.gradients_of(layers, toy.text(), [1, 4]).items():
        assert torch.allclose(gradient, (alone[0][name] + alone[1][name]) / 2, atol=1e-7, rtol=1e-5)
    text = BlockText([30, 500, 20, 7, 600, 9], toy.text().output, toy.text().wanted)
    steps = rounding.steps_of(text, 500, torch.Generator().manual_seed(3))
    assert sorted(n for step in steps for n in step) == list(range(6))
    assert all(sum(text.tokens[n] for n in step) >= 500 for step in steps[:-1])
    assert all(sum(text.tokens[n] for n in step[:-1]) < 500 for step in steps)


def test_one_step_is_adams() -> None:
    """The first step moves everything by its share of the way, whatever the size of its gradient."""
    toy = Toy(Scheme("int", 4, 16))
    layer = rounding._Layer(toy.parts["in"], rounding.Options(lean=0, travel=0.25, stretch=0.05))
    place, gradient = layer._place.clone(), torch.randn(HIDDEN, WIDTH, generator=torch.Generator().manual_seed(1))
    steps = layer.codes() - layer._zero
    layer.move(gradient, 0.5)
    assert torch.allclose(layer._place - place, -0.125 * gradient.sign(), atol=1e-5)
    slope = (gradient * steps).reshape(HIDDEN, -1, 16).sum(2)
    assert torch.allclose(layer._factor, -0.025 * slope.sign(), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 32, 300])
def test_steps_are_shares_of_one_way(steps: int) -> None:
    shares = rounding.shares_of(steps)
    assert sum(shares) == pytest.approx(min(1, steps / 32))
    assert len(shares) == steps
    assert min(shares) > 0
    assert steps < 300 or max(shares) < 2.2 / steps
    assert steps < 300 or shares[-1] < 0.01 / steps


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_the_error_falls_and_everything_stays_where_it_may_be(bits: int, symmetric: bool) -> None:
    scheme = Scheme("int", bits, 16, symmetric, "float16", 11 - bits)
    toy = Toy(scheme)
    tuned = toy.tuned(rounding.Options(epochs=20, tokens=40))
    start = {name: part.q for name, part in toy.parts.items()}
    assert tuned.before == pytest.approx(toy.error(start), rel=1e-4)
    assert tuned.after == pytest.approx(toy.error(tuned.layers), rel=1e-4)
    assert tuned.after <= tuned.before * (0.9 if bits < 6 else 1)
    for name, q in tuned.layers.items():
        before = start[name]
        assert q.codes.dtype == torch.uint8
        assert int(q.codes.max()) < 2**bits
        assert int((q.codes.int() - before.codes.int()).abs().max()) <= 1
        assert torch.equal(round_to_storage(q.scale, "float16", 11 - bits), q.scale)
        assert (q.scale != 0).all()
        assert (q.zero is None) == symmetric
        assert q.zero is None or (before.zero is not None and torch.equal(q.zero, before.zero))
        assert q.scheme == scheme


def test_nothing_is_modified_and_the_seed_decides() -> None:
    toy = Toy(Scheme("int", 3, 16))
    kept = {name: (p.weight.clone(), p.q.codes.clone(), p.q.scale.clone()) for name, p in toy.parts.items()}
    first = toy.tuned()
    torch.rand(3)
    second, other = toy.tuned(), toy.tuned(seed=1)
    for name, part in toy.parts.items():
        assert all(
            torch.equal(a, b) for a, b in zip(kept[name], (part.weight, part.q.codes, part.q.scale), strict=True)
        )
        assert torch.equal(first.layers[name].codes, second.layers[name].codes)
        assert torch.equal(first.layers[name].scale, second.layers[name].scale)
    assert any(not torch.equal(first.layers[name].scale, other.layers[name].scale) for name in toy.parts)


def test_padding_counts_for_nothing() -> None:
    toy, other = Toy(Scheme("int", 3, 16)), Toy(Scheme("int", 3, 16))
    for wanted in other.wanted:
        wanted[1, -5:] = 1e3
    one, two = toy.tuned(), other.tuned()
    assert one.after == two.after
    assert all(torch.equal(one.layers[name].codes, two.layers[name].codes) for name in toy.parts)


def test_what_makes_it_worse_is_not_taken() -> None:
    toy = Toy(Scheme("int", 8, 16))
    solved = {name: dequantize(part.q) for name, part in toy.parts.items()}
    noise = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(5)) * 1e-6
    toy.wanted = [toy.forward(x, solved) + noise for x in toy.seen]  # all but right: any way is too far
    tuned = toy.tuned(rounding.Options(epochs=6, tokens=40, travel=0, stretch=0.5))
    assert tuned.after == tuned.before
    assert all(tuned.layers[name] is part.q for name, part in toy.parts.items())


def test_where_the_whole_way_is_too_far_a_shorter_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(Scheme("int", 8, 16))
    seen: list[int] = []
    for ways, steps in (((FAR,), 32), ((FAR, 1.0), 64), ((1.0, 0.25), 32)):
        monkeypatch.setattr(rounding, "WAYS", ways)
        options, draw = rounding.Options(epochs=32, tokens=1000, stretch=0.1), torch.Generator().manual_seed(0)
        seen.clear()
        tuned = rounding.tune(toy.parts, toy.text(), options, draw, lambda done, _: seen.append(done))
        assert len(seen) == steps
        assert (tuned.after < tuned.before) == (ways != (FAR,))


def test_without_a_rate_codes_stay() -> None:
    toy = Toy(Scheme("int", 3, 16))
    tuned = toy.tuned(rounding.Options(travel=0, tokens=40, epochs=6))
    assert tuned.after < tuned.before
    assert all(torch.equal(tuned.layers[name].codes, part.q.codes) for name, part in toy.parts.items())


def test_layers_that_are_not_reached_stay() -> None:
    toy = Toy(Scheme("int", 3, 16))
    toy.parts["unused"] = Part(toy.weights["in"], toy.parts["in"].q)
    found = toy.tuned().layers["unused"]
    assert torch.equal(found.codes, toy.parts["in"].q.codes)
    assert torch.equal(found.scale, toy.parts["in"].q.scale)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"epochs": -1}, "tune.epochs -1"), ({"travel": -1.0}, "tune.travel"), ({"reach": 3.0}, "tune.reach 3.0"),
     ({"stretch": 1.0}, "tune.stretch"), ({"tokens": 0}, "tune.tokens 0"), ({"lean": 2.0}, "tune.lean")],
)  # fmt: skip
def test_impossible_options_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        replace(rounding.Options(), **settings)  # type: ignore[arg-type]


def test_block_methods_are_files() -> None:
    assert registry.names("block-method") == ["rounding"]
    assert isinstance(registry.load("block-method", "rounding"), BlockMethod)
    assert "block" not in registry.names("method")
    assert rounding.tunes(Toy(Scheme("int", 3, 16)).parts["in"].q)
    nf4 = rtn.quantize(torch.randn(4, 64), None, Scheme.parse("nf4"), rtn.Options())[0]
    assert not rounding.tunes(nf4)
