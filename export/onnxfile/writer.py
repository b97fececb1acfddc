"""What is traced of models that write: an encoder, a decoder for the first step, a decoder with past for the others.

Files, inputs and outputs as optimum's ORTModelForSeq2SeqLM and ORTModelForSpeechSeq2Seq name them. The first decoder
also makes the keys and values of what was read, once; the other takes them and gives its own back. Both decoders read
their weights from one file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.onnxfile.graph import Traced, skeleton, trace
from export.onnxfile.rewrite import Writer, rewrite
from export.source import Source

ENCODER, DECODER, WITH_PAST = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"
SHARED = "model.onnx_data"
READ, STEP, PAST = 12, 3, 5
BATCH = {0: "batch_size"}
TEXT = {0: "batch_size", 1: "encoder_sequence_length"}
WRITTEN = {0: "batch_size", 1: "decoder_sequence_length"}


class _Encoder(nn.Module):
    """What the encoder makes of what is read."""

    def __init__(self, model: Any) -> None:
        """model: an encoder-decoder."""
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        """(B, S, D)."""
        made: Tensor = self.model.get_encoder()(**inputs)[0]
        return made


class _Decoder(nn.Module):
    """One step of writing. layers: of the decoder. past: whether keys and values of earlier steps are given."""

    def __init__(self, model: Any, layers: int, past: bool) -> None:
        """See the class."""
        super().__init__()
        self.model, self.layers, self.past = model, layers, past

    def forward(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Logits, then keys and values of each layer: the decoder's own, and of the first step also the encoder's."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        mask = inputs.get("encoder_attention_mask")
        if self.past:
            own = [(inputs[_past(n, "decoder", "key")], inputs[_past(n, "decoder", "value")]) for n in self._range()]
            read = [(inputs[_past(n, "encoder", "key")], inputs[_past(n, "encoder", "value")]) for n in self._range()]
            cache = EncoderDecoderCache(DynamicCache(own), DynamicCache(read))
            cache.is_updated = dict.fromkeys(self._range(), True)
            size = self.model.config.hidden_size
            # only its shape is looked at: keys and values of what was read are there
            hidden = read[0][0].new_zeros(read[0][0].shape[0], read[0][0].shape[2], size)
        else:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            hidden = inputs["encoder_hidden_states"]
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=inputs["input_ids"],
            past_key_values=cache,
            use_cache=True,
            **({"attention_mask": mask} if mask is not None else {}),
        )
        kept = output.past_key_values
        parts = [kept.self_attention_cache] if self.past else [kept.self_attention_cache, kept.cross_attention_cache]
        return (
            output.logits,
            *(t for n in self._range() for p in parts for t in (p.layers[n].keys, p.layers[n].values)),
        )

    def _range(self) -> range:
        return range(self.layers)


def write(source: Source, folder: Path, writer: Writer) -> dict[str, Any]:
    """The three graphs, rewritten, by file name."""
    del folder
    model = skeleton(source)
    model.config.use_cache = True
    hears = getattr(model, "main_input_name", "input_ids") == "input_features"
    layers = _decoder_layers(model)
    asked = _encoder_inputs(model, hears)
    with torch.no_grad():
        sizes = _sizes(model, asked.inputs)
    calls = {
        ENCODER: (_Encoder(model), asked),
        DECODER: (_Decoder(model, layers, False), _decoder_inputs(layers, hears, False, sizes)),
        WITH_PAST: (_Decoder(model, layers, True), _decoder_inputs(layers, hears, True, sizes)),
    }
    made = {}
    for name, (called, what) in calls.items():
        made[name] = trace(model, called, what, writer.fused and name == ENCODER)
        rewrite(made[name], writer.again())
    return made


def _decoder_layers(model: Any) -> int:
    config = model.config
    return int(getattr(config, "decoder_layers", 0) or getattr(config, "num_decoder_layers", 0) or config.num_layers)


def _sizes(model: Any, inputs: Any) -> tuple[int, int, int, int]:
    """(positions that the encoder gives, its width, heads of the decoder, width of a head)."""
    config = model.config
    heads = int(getattr(config, "decoder_attention_heads", 0) or config.num_heads)
    width = int(getattr(config, "d_kv", 0) or config.d_model // heads)
    if "input_features" in inputs:
        return int(config.max_source_positions), int(config.d_model), heads, width
    return READ, int(config.d_model), heads, width


def _encoder_inputs(model: Any, hears: bool) -> Traced:
    if hears:
        config = model.config
        features = torch.zeros(2, int(config.num_mel_bins), 2 * int(config.max_source_positions))
        return Traced({"input_features": features}, {"input_features": BATCH}, ("last_hidden_state",))
    ids = torch.arange(2 * READ).reshape(2, READ) % 7 + 5
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Traced(made, dict.fromkeys(made, TEXT), ("last_hidden_state",))


def _decoder_inputs(layers: int, hears: bool, past: bool, sizes: tuple[int, int, int, int]) -> Traced:
    read, width, heads, head = sizes
    inputs: dict[str, Tensor] = {"input_ids": torch.arange(2 * STEP).reshape(2, STEP) % 7 + 5}
    axes: dict[str, dict[int, str]] = {"input_ids": WRITTEN}
    if not hears:
        inputs["encoder_attention_mask"] = torch.ones(2, read, dtype=torch.int64)
        axes["encoder_attention_mask"] = TEXT
    if past:
        for n in range(layers):
            for part, length in (("decoder", PAST), ("encoder", read)):
                for kind in ("key", "value"):
                    inputs[_past(n, part, kind)] = torch.zeros(2, heads, length, head)
                    axes[_past(n, part, kind)] = _past_axes(part, hears)
    else:
        inputs["encoder_hidden_states"] = torch.zeros(2, read, width)
        axes["encoder_hidden_states"] = BATCH if hears else TEXT
    parts = ("decoder",) if past else ("decoder", "encoder")
    present = [f"present.{n}.{part}.{kind}" for n in range(layers) for part in parts for kind in ("key", "value")]
    return Traced(inputs, axes, ("logits", *present))


def _past_axes(part: str, hears: bool) -> dict[int, str]:
    if part == "decoder":
        return {0: "batch_size", 2: "past_decoder_sequence_length"}
    return BATCH if hears else {0: "batch_size", 2: "encoder_sequence_length"}


def _past(layer: int, part: str, kind: str) -> str:
    return f"past_key_values.{layer}.{part}.{kind}"
