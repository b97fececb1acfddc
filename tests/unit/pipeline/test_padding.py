"""What pads the texts of a row to one length is in no statistic."""

from __future__ import annotations

import torch

from calibrate.collectors.drift import DriftCollector
from calibrate.collectors.hessian import HessianCollector
from compress.core.blocks import find_structure
from compress.core.types import BlockRef
from compress.pipeline.collect import Collecting
from compress.pipeline.replay import Trace, text_mask
from compress.pipeline.writers import Writers
from tests.tiny import tiny_model

CPU = torch.device("cpu")
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()


def block_of() -> BlockRef:
    model = tiny_model("bert")
    return find_structure(model, model.config).blocks[0]


def test_statistics_are_those_of_the_text_alone() -> None:
    block = block_of()
    gathered = Collecting(block, lambda n: HessianCollector(n, CPU))
    gathered.mask = MASK
    gathered.begin()
    torch.manual_seed(0)
    inputs = {layer.name: torch.randn(2, 3, layer.shape[1]) for layer in block.layers}
    fused = [layer.name for layer in block.layers if layer.fused_with]
    for name in fused:
        inputs[name] = inputs[fused[0]]
    for layer in block.layers:
        gathered.add(layer, inputs[layer.name])
    for layer in block.layers:
        alone = HessianCollector(layer.shape[1], CPU)
        alone.add(inputs[layer.name][MASK])
        found = gathered.take(layer)
        torch.testing.assert_close(found.hessian, alone.stats().hessian)
        assert found.n_tokens == 5


def test_tokens_in_another_order_are_left_as_they_are() -> None:
    gathered = Collecting(block_of(), lambda n: HessianCollector(n, CPU))
    gathered.mask = MASK
    routed = torch.randn(4, 64)  # those that one expert gets
    assert gathered._text(routed) is routed


def test_what_the_stream_lacks_is_that_of_the_text_alone() -> None:
    block = block_of()
    writers = Writers(block, lambda rows, columns: DriftCollector(rows, columns, CPU))
    layer = next(la for la in block.layers if la.role == "fc2")
    torch.manual_seed(0)
    wanted, stream, x = torch.randn(2, 3, 64), torch.randn(2, 3, 64), torch.randn(2, 3, layer.shape[1])
    writers.adds[layer.name] = 1
    writers._streams.append({layer.name: [wanted]})
    writers.batch(0, MASK)
    writers.reads(layer, x)
    writers.wrote(layer.name, stream)
    alone = DriftCollector(*layer.shape, CPU)
    weights = 1 / wanted.square().mean(-1)
    alone.add(x[MASK], (wanted - stream)[MASK], weights[MASK])
    found = writers.take(layer)
    assert found is not None
    torch.testing.assert_close(found.drift(), alone.drift(), rtol=1e-4, atol=1e-5)


def test_a_mask_of_several_texts_is_flattened_as_the_model_does() -> None:
    assert text_mask(Trace({"input_ids": torch.ones(1, 2, 3)})) is None
    found = text_mask(Trace({"attention_mask": MASK.long()[None]}))
    assert found is not None
    assert torch.equal(found, MASK)
