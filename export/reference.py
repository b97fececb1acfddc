"""The compressed model in memory, float32, as an export stands for it: what every runtime is compared with.

`run` with an `Arithmetic` runs the same model with the rounding that a runtime does on purpose (int8 inputs, bfloat16),
`shaken` with last bits as another order of sums leaves them: how far that alone moves the outputs is what a runtime's
own differences are measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.blocks import write_weight
from compress.core.checkpoint import fill_tied
from compress.core.errors import ModelError
from compress.core.numerics.activation import Coding, Grid, fake_quantize
from compress.core.numerics.affine import dequantize
from compress.core.types import ActScheme
from export.runtimes._kind import Arithmetic
from export.runtimes._rules import Rules
from export.source import Coded, Source

OUTLIER = 6.0  # llm_int8_threshold
LAST_BITS = 2.0**-22
"""Of a token's largest value: by how much inputs are moved in `shaken`. Before the first code that was another, those
of onnxruntime and torch differed by up to twice as much (tiny bert-classifier, W8A8 dynamic)."""
BLOCK = 32  # inputs that share a scale in ggml's int8 blocks


class Reference:
    """The whole model in memory. packed: the layers whose codes the export holds; others are as OUT stores them.

    acts: how inputs that the artifact rounds to int8 are rounded here, in the layers of `packed`; None: not at all.
    """

    def __init__(self, source: Source, packed: Collection[str], acts: Coding | None = None) -> None:
        """Load every weight: 4 bytes a parameter. Raises ModelError as `Checkpoint.load` does."""
        self.source, self.packed, self.acts = source, set(packed), acts
        self._draw: torch.Generator | None = None
        self.model: Any = source.model
        checkpoint = source.checkpoint
        for name, parameter in list(self.model.named_parameters()):
            if parameter.is_meta:
                fill_tied(self.model, name, checkpoint.load(name, torch.float32))
        for coded in source.coded.values():
            if coded.beside and coded.layer.name in self.packed:
                parameter = self.model.get_parameter(coded.layer.param)
                write_weight(coded.layer, parameter, dequantize(source.codes(coded.layer.name)))
        checkpoint.fill_buffers()
        self.model.eval()

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor], arithmetic: Arithmetic | None = None) -> Tensor:
        """Logits (B, L, V) of a model that has them, else its first output, float32; rounded as `arithmetic` says.

        Raises ModelError for outputs that are not finite.
        """
        arithmetic = arithmetic or Arithmetic()
        dtype = getattr(torch, arithmetic.dtype)
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        with self._rounding(arithmetic):
            output = self.model(**given)
        found: Tensor = output.logits if "logits" in output else _first(output)
        found = found.float()
        if not bool(torch.isfinite(found).all()):
            raise ModelError(f"{self.source.folder} gives NaN or infinity; quantize it again from whole weights")
        return found

    def shaken(self, inputs: Mapping[str, Tensor], seed: int) -> Tensor:
        """`run`, with the last bits of what is rounded to int8 drawn anew in every layer: as right as `run` itself."""
        self._draw = torch.Generator().manual_seed(seed)
        try:
            return self.run(inputs)
        finally:
            self._draw = None

    def greedy(self, ids: Sequence[int], n: int) -> tuple[list[int], Tensor]:
        """n next tokens by argmax, and the logits (n, V) they were chosen from."""
        told, rows = list(ids), []
        for _ in range(n):
            rows.append(self.run({"input_ids": torch.tensor([told])})[0, -1])
            told.append(int(rows[-1].argmax()))
        return told[len(ids) :], torch.stack(rows)

    @torch.inference_mode()
    def writes(self, inputs: Mapping[str, Tensor], said: Rules, n: int) -> tuple[list[int], Tensor]:
        """Of an encoder-decoder: n tokens by argmax behind what a text begins with, and the logits (n, V) they were
        chosen from; tokens that `said` forbids have -inf. inputs: what the encoder reads of one text or sound."""
        with self._rounding(Arithmetic()):
            read = self.model.get_encoder()(**inputs)
            mask = {name: value for name, value in inputs.items() if name == "attention_mask"}

            def after(ids: Sequence[int]) -> Tensor:
                told = {"encoder_outputs": read, "decoder_input_ids": torch.tensor([list(ids)]), **mask}
                logits: Tensor = self.model(**told, use_cache=False).logits[0, -1].float()
                return logits

            told = said.beginning(lambda ids: ids[int(after([said.start])[list(ids)].argmax())])
            begun, rows = len(told), []
            for turn in range(n):
                rows.append(after(told))
                said.heed(rows[-1], turn)
                told.append(int(rows[-1].argmax()))
        return told[begun:], torch.stack(rows)

    def computing(self, arithmetic: Arithmetic | None = None) -> AbstractContextManager[None]:
        """Inside, `model` computes as the export stands for it, or as `arithmetic` says, whoever calls it."""
        return self._rounding(arithmetic or Arithmetic())

    @contextmanager
    def _rounding(self, arithmetic: Arithmetic) -> Iterator[None]:
        """Inside, the model computes as `arithmetic` says."""
        dtype = getattr(torch, arithmetic.dtype)
        handles = [
            module.register_forward_pre_hook(hook)
            for name, module in self.model.named_modules()
            if (hook := self._hook(name, module, arithmetic)) is not None
        ]
        held = {n: p.data for n, p in self.model.named_parameters()} if dtype != torch.float32 else {}
        try:
            if held:
                self.model.to(dtype)
            yield
        finally:
            for handle in handles:
                handle.remove()
            if held:
                self.model.float()
                for name, data in held.items():
                    self.model.get_parameter(name).data = data

    def _hook(self, name: str, module: nn.Module, arithmetic: Arithmetic) -> Callable[..., Any] | None:
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or not isinstance(weight, Tensor) or weight.dim() != 2:
            return None
        coded = self._coded(name)
        if coded is not None and coded.activation is not None and self.acts:
            scheme, grid = coded.activation, self.source.input_grid(name)
            if arithmetic.integers:
                return None
            coding = self.acts
            return lambda _, given: (_acted(self._moved(given[0]), scheme, grid, coding), *given[1:])
        if coded is not None and arithmetic.coded == "int8-outliers":
            return lambda _, given: (rounded_but_outliers(given[0]), *given[1:])
        if coded is not None and arithmetic.coded:
            size = BLOCK if arithmetic.coded == "int8-32" else coded.scheme.group_size
            narrow = arithmetic.coded == "int8-32"
            return lambda _, given: (rounded_by_blocks(given[0], size, narrow), *given[1:])
        if coded is None and arithmetic.dense:
            through = getattr(torch, arithmetic.dense)
            return lambda _, given: (given[0].to(through).to(given[0].dtype), *given[1:])
        return None

    def _coded(self, name: str) -> Coded | None:
        """The codes that the module `name` multiplies by in the export: a tied head has those of the embedding."""
        head, found = self.source.structure.head, self.source.coded.get(name)
        if found is None and head is not None and head.name == name and head.tied_to is not None:
            found = self.source.by_param.get(head.tied_to) or self.source.by_param.get(head.param)
        return found if found is not None and found.layer.name in self.packed else None

    def _moved(self, x: Tensor) -> Tensor:
        """`x` (..., I), moved by LAST_BITS of each row's largest value while somebody shakes."""
        if self._draw is None or x.numel() == 0:
            return x
        drawn = torch.rand(x.shape, generator=self._draw).to(x) * 2 - 1
        return x + drawn * LAST_BITS * x.abs().amax(-1, keepdim=True)


def rounded_by_blocks(x: Tensor, size: int, narrow: bool) -> Tensor:
    """`x` (..., I) as symmetric int8 codes of blocks of `size` inputs stand for it (-1: whole rows).

    narrow: scales are stored as float16, after codes were chosen by the unrounded ones; so does ggml's Q8_0
    (`quantize_row_q8_0_ref`: d = max |x| / 127, codes round(x / d)).
    """
    columns = x.shape[-1]
    size = columns if size == -1 else size
    padded = nn.functional.pad(x, (0, -columns % size)).reshape(*x.shape[:-1], -1, size)
    scale = padded.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale > 0, padded / torch.where(scale > 0, scale, 1.0), 0.0).round()
    whole: Tensor = (codes * (scale.half().float() if narrow else scale)).flatten(-2)
    return whole[..., :columns]


def rounded_but_outliers(x: Tensor, threshold: float = OUTLIER) -> Tensor:
    """`x` (..., I) as LLM.int8 multiplies it: through float16 and int8, each token by its largest value, but for the
    columns in which some token reaches `threshold`; a value that does is in nobody's largest.

    Source: bitsandbytes/backends/default/ops.py, int8_vectorwise_quant and int8_mixed_scaled_mm (0.50.2).
    """
    rows = x.reshape(-1, x.shape[-1])
    through = rows.half().float()
    outliers = through.abs() >= threshold
    columns = outliers.any(0)
    inside = torch.where(outliers, 0.0, through)
    scale = inside.abs().amax(1, keepdim=True) / 127
    codes = torch.where(scale > 0, inside / torch.where(scale > 0, scale, 1.0), 0.0).round()
    return torch.where(columns, rows.float(), codes * scale).to(x.dtype).reshape(x.shape)


def _acted(x: Tensor, scheme: ActScheme, grid: Grid | None, coding: Coding) -> Tensor:
    """`x` as its int8 codes stand for it, by the artifact's own scheme and the format's rounding."""
    if x.numel() == 0:
        return x
    if scheme.dynamic and scheme.strategy == "tensor":  # every text as a batch of its own
        return torch.cat([fake_quantize(text.float(), scheme, None, coding) for text in torch.split(x, 1)]).to(x.dtype)
    return fake_quantize(x.float(), scheme, grid, coding).to(x.dtype)


def _first(output: Any) -> Tensor:
    return next(value for value in output.to_tuple() if isinstance(value, Tensor) and value.is_floating_point())
