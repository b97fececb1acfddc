"""What whole plans lose, measured: text through the bank's codes, several plans side by side, a block at a time.

The layers were solved once, each on what the original model gives it; so a plan costs one pass of the text and no
solving, and plans are compared with nothing but their choices between them. Plans that are alike up to a block share
what comes out of it. Memory: one block and its codes, the vocabulary, and the activations of the text once for every
plan that has parted from the others, ROOM at most unless two plans alone take more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compress.core.blocks import read_weight, write_weight
from compress.core.checkpoint import empty, fill_tied
from compress.core.device import release_memory
from compress.core.numerics.affine import dequantize
from compress.core.types import ActScheme, BlockRef, LayerRef
from compress.pipeline.acting import rounding
from compress.pipeline.bank import Bank
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import Prepared
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.stream import Report, old_objects_left_alone

ROOM = 1 << 30

Picks = Mapping[str, str]
"""Layer -> its treatment, codes of the bank and how inputs are rounded; one that is not named is as in the original."""

See = Callable[[int, int, Trace, Any], None]
"""(plan, number of the text, its trace, the model's output); of every text the original comes first, plan -1."""


@dataclass
class _Alike:
    """Plans that have been the same so far, and their text."""

    members: list[int]
    traces: list[Trace]


@dataclass(frozen=True)
class Draws:
    """Runs plans over one model. bank: every layer that they name, at every scheme that they give it."""

    ready: Prepared
    outside: Outside
    bank: Bank
    report: Report

    def run(self, plans: Sequence[Picks], inputs: Sequence[dict[str, Tensor]], see: See) -> None:
        """Every text through the original and through every plan."""
        size = _bytes(self.ready.checkpoint.model.config, inputs)
        most = max(1, ROOM // max(size, 1) - 1)
        for start in range(0, max(1, len(plans)), most):
            self._some({-1: {}} | {n: plans[n] for n in range(start, min(start + most, len(plans)))}, inputs, see)

    def _some(self, plans: dict[int, Picks], inputs: Sequence[dict[str, Tensor]], see: See) -> None:
        checkpoint, blocks = self.ready.checkpoint, self.ready.structure.blocks
        groups = [_Alike(list(plans), [Trace(given) for given in inputs])]
        with Replay(checkpoint.model, blocks) as replay, old_objects_left_alone():
            for block in blocks:
                self.report("judging plans", block.index, len(blocks))
                checkpoint.fill(block.name)
                first = block.position == 0
                with self.outside.installed("original", vocabulary=first), self.ends(first) as use:
                    if first:
                        groups = self._parted(groups, plans, self._end_names())
                    groups = self._parted(groups, plans, [layer.name for layer in block.layers])
                    put = self.putting(block)
                    for group in groups:
                        picks = plans[group.members[0]]
                        use(picks)
                        put(picks)
                        with _rounding(checkpoint.model, block, picks):
                            for trace in group.traces:
                                replay.advance(trace, block.index)
                empty(checkpoint.model.get_submodule(block.name))
                release_memory()
            groups = self._parted(groups, plans, self._end_names())
            with self.outside.installed("original", vocabulary=True), self.ends(True) as use:
                for number in range(len(inputs)):
                    for group in groups:
                        use(plans[group.members[0]])
                        output = replay.finish(group.traces[number])
                        for member in group.members:
                            see(member, number, group.traces[number], output)
        self.report("judging plans", len(blocks), len(blocks))

    def _end_names(self) -> list[str]:
        return sorted(self.bank.names(-1))

    def _parted(self, groups: list[_Alike], plans: dict[int, Picks], layers: Sequence[str]) -> list[_Alike]:
        """Groups whose members have the same schemes for `layers` too; the one of the original stays the first."""
        found = []
        for group in groups:
            parts: dict[tuple[str | None, ...], list[int]] = {}
            for member in group.members:
                parts.setdefault(tuple(plans[member].get(layer) for layer in layers), []).append(member)
            for number, members in enumerate(parts.values()):
                traces = group.traces if number == 0 else [trace.copy() for trace in group.traces]
                found.append(_Alike(members, traces))
        # a copy is made before its source moves on: nothing has run since the group was whole
        return found

    def putting(self, block: BlockRef) -> Callable[[Picks], None]:
        """What puts a plan's weights into the block, which is in memory as the original has it."""
        model = self.ready.checkpoint.model
        codes = self.bank.read(block.index)
        asked = [layer for layer in block.layers if any(name == layer.name for name, _ in codes)]
        kept = {la.name: read_weight(la, model.get_parameter(la.param)).clone() for la in asked}
        there: dict[str, str | None] = dict.fromkeys(kept)

        def put(picks: Picks) -> None:
            for layer in asked:
                scheme = _scheme(picks.get(layer.name))
                if scheme != there[layer.name]:
                    weight = kept[layer.name] if scheme is None else dequantize(codes[layer.name, scheme])
                    write_weight(layer, model.get_parameter(layer.param), weight)
                    there[layer.name] = scheme

        return put

    @contextmanager
    def ends(self, wanted: bool) -> Iterator[Callable[[Picks], None]]:
        """Inside, the function installs a plan's embedding and head; `wanted`: whether they are in memory at all."""
        model = self.ready.checkpoint.model
        codes = self.bank.read(-1) if wanted and self._end_names() else {}
        ends = [layer for layer in _ends_of(self.ready) if any(name == layer.name for name, _ in codes)]
        kept: dict[str, Tensor] = {layer.name: model.get_parameter(layer.param) for layer in ends}
        decoded: dict[tuple[str, str], Tensor] = {}

        def use(picks: Picks) -> None:
            for layer in ends:
                scheme = _scheme(picks.get(layer.name))
                if scheme is not None and (layer.name, scheme) not in decoded:
                    decoded[layer.name, scheme] = dequantize(codes[layer.name, scheme])
                tensor = kept[layer.name] if scheme is None else decoded[layer.name, scheme]
                if model.get_parameter(layer.param).data_ptr() != tensor.data_ptr():
                    fill_tied(model, layer.param, tensor)

        yield use
        use({})


def _scheme(treatment: str | None) -> str | None:
    return None if treatment is None else treatment.partition(" ")[0]


@contextmanager
def _rounding(model: nn.Module, block: BlockRef, picks: Picks) -> Iterator[None]:
    """Inside, layers whose treatment says so round their inputs, each text by itself."""
    handles = []
    for layer in block.layers:
        scheme = picks.get(layer.name, "").partition(" ")[2]
        if scheme:
            module = model.get_submodule(layer.param.rpartition(".")[0])
            hook = rounding(layer.name, ActScheme.parse(scheme), None)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ends_of(ready: Prepared) -> list[LayerRef]:
    ends = (ready.structure.embedding, ready.structure.head)
    return [layer for layer in ends if layer is not None and layer.tied_to is None]


def _bytes(config: Any, inputs: Sequence[dict[str, Tensor]]) -> int:
    """Activations of the text, float32, as one plan holds them."""
    width = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0) or 1024)
    return sum(4 * width * tensor.numel() for given in inputs for name, tensor in given.items() if "ids" in name)
