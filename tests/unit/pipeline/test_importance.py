"""What tokens count: by hand, batch by batch, with what is not known; and what it does to second moments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calibrate.collectors.drift import DriftCollector
from calibrate.collectors.hessian import HessianCollector
from compress.core.blocks import find_structure
from compress.core.errors import OutputError
from compress.core.numerics.correct import corrected
from compress.core.types import BlockRef, LayerRef, LayerStats
from compress.pipeline.collect import Collecting
from compress.pipeline.importance import LEAST, MOST, Importance, Watched, weighed
from compress.pipeline.writers import Writers
from tests.tiny import tiny_model

CPU = torch.device("cpu")
NAMES = ("block.q", "block.k")


class Pair(nn.Module):
    """Two maps that servers fuse, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.twice = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(self.q(x) * self.k(x)))  # type: ignore[no-any-return]


def recorded(folder: Path, texts: list[Tensor]) -> tuple[BlockRef, dict[str, list[Tensor]]]:
    """A block whose gradients of |output|^2 were watched, and |g|^2 of its first two layers by hand."""
    layers = tuple(LayerRef(n, f"{n}.weight", (4, 4), 0, n[-1], fused_with=NAMES) for n in NAMES)
    layers += (LayerRef("block.twice", "block.twice.weight", (4, 4), 0, "twice"),)
    block, model, watched = BlockRef(0, "block", "", 0, layers), nn.Module(), Watched()
    torch.manual_seed(0)
    pair = Pair()
    model.add_module("block", pair)
    by_hand: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    with watched.watching(model, layers):
        for watched.number, x in enumerate(texts):
            output = pair(x)
            for scale in (1.0, 2.0):  # two draws
                torch.autograd.grad(scale * output.square().sum(), list(pair.parameters()), retain_graph=True)
    for x in texts:
        q, k = (m(x).detach().requires_grad_() for m in (pair.q, pair.k))
        for name, found in zip(
            NAMES, torch.autograd.grad(pair.twice(pair.twice(q * k)).square().sum(), [q, k]), strict=True
        ):
            by_hand[name].append(5 * found.square().sum(-1))  # 1 + 2^2
    watched.write(folder, block)
    return block, by_hand


def test_each_token_counts_by_its_gradient_over_the_mean(tmp_path: Path) -> None:
    """Each by its own, fused or not; a layer that is called twice in a forward is not known."""
    texts = [torch.randn(1, 3, 4), torch.randn(1, 5, 4)]
    block, by_hand = recorded(tmp_path, texts)
    found = Importance(tmp_path, 2, (0, 1)).of(block, [1, 1])
    for number, batch in enumerate(found):
        assert set(batch) == set(NAMES)
        for name, energy in batch.items():
            torch.testing.assert_close(energy, by_hand[name][number] / torch.cat(by_hand[name], 1).mean())


def test_rows_stand_in_the_batches_of_the_build_and_what_nobody_asked_about_is_nan(tmp_path: Path) -> None:
    """Texts 1 and 2 of four were asked about; the build has rows of two and two, and then one batch of another."""
    block, _ = recorded(tmp_path, [torch.randn(1, 3, 4), torch.randn(1, 3, 4)])
    alone = [batch["block.q"] for batch in Importance(tmp_path, 2, (0, 1)).of(block, [1, 1])]
    first, second, third = Importance(tmp_path, 5, (1, 2)).of(block, [2, 2, 1])
    assert first["block.q"].isnan().all(1).tolist() == [True, False]
    assert second["block.q"].isnan().all(1).tolist() == [False, True]
    torch.testing.assert_close(torch.cat([first["block.q"][1:], second["block.q"][:1]]), torch.cat(alone))
    assert third == {}


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    block, _ = recorded(tmp_path, [torch.randn(1, 3, 4)])
    next(tmp_path.iterdir()).unlink()
    with pytest.raises(OutputError, match=r"importance-00000.safetensors of the interrupted run is gone; pass --overw"):
        Importance(tmp_path, 1, (0,)).of(block, [1])


def test_tokens_count_with_the_root_of_both() -> None:
    """A quarter of the mean counts half, what counted less before counts less, and nobody counts for all."""
    ones = torch.ones(1, 4)
    found = weighed(ones, torch.tensor([[0.25, 1.0, 0.0, 1e6]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0, LEAST**0.5, MOST**0.5]]))
    base = torch.tensor([1.0, 3.0])
    energy = torch.tensor([2.0, 0.5])
    torch.testing.assert_close(weighed(base, energy), (base * energy * base.mean()).sqrt())
    assert weighed(base, torch.tensor([torch.nan, 1.5])).tolist() == [1.0, 3.0]
    assert weighed(base, None) is base
    assert weighed(base, torch.ones(5)) is base  # of other tokens


def test_second_moments_count_tokens_so() -> None:
    """Of readers and of a layer that writes to the stream, whose correction does without; not what is padding."""
    model = tiny_model("bert")
    block = find_structure(model, model.config).blocks[0]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    torch.manual_seed(0)
    fc2 = next(la for la in block.layers if la.role == "fc2")
    writers = Writers(block, lambda rows, columns: DriftCollector(rows, columns, CPU))
    wanted, stream = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    writers.adds[fc2.name] = 1
    writers._streams.append({fc2.name: [wanted]})
    gathered = Collecting(block, lambda n: HessianCollector(n, CPU), writers, apart=True)
    gathered.mask = mask
    energies = {layer.name: torch.rand(2, 3) + 0.5 for layer in block.layers}
    gathered.energies = energies
    writers.batch(0, mask)
    gathered.begin()
    gathered._left = None
    fused = [layer.name for layer in block.layers if layer.fused_with]
    inputs = {layer.name: torch.randn(2, 3, layer.shape[1]) for layer in block.layers}
    inputs |= dict.fromkeys(fused, inputs[fused[0]])
    for layer in block.layers:
        gathered.add(layer, inputs[layer.name])
    writers.wrote(fc2.name, stream)
    base = 1 / wanted.square().mean(-1)
    for layer in block.layers:
        energy = energies[layer.name]
        weights = weighed(base, energy) if layer is fc2 else energy.sqrt()
        by_hand = HessianCollector(layer.shape[1], CPU)
        by_hand.add(inputs[layer.name][mask], weights[mask])
        found = gathered.take(layer)
        torch.testing.assert_close(found.hessian, by_hand.stats().hessian)
        if layer is not fc2:
            assert found.drift_hessian is None
            continue
        drift, moments = DriftCollector(*layer.shape, CPU), HessianCollector(layer.shape[1], CPU)
        drift.add(inputs[layer.name][mask], (wanted - stream)[mask], base[mask])
        moments.add(inputs[layer.name][mask], base[mask])
        torch.testing.assert_close(found.drift, drift.drift(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.drift_hessian, moments.stats().hessian)
        weight = torch.randn(*layer.shape)
        alone = LayerStats(found.n_tokens, moments.stats().hessian, found.drift)
        torch.testing.assert_close(corrected(weight, found), corrected(weight, alone))
