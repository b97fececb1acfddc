"""Tiny random models of every architecture the project promises, and a real tokenizer to go with them.

Weights are drawn so that a forward pass carries signal: matrices with std 1/sqrt(fan in), embeddings with
std 0.3, gains and biases a tenth of noise around their own initial value. The library's own initialisation
(std 0.02 everywhere) makes every logit nearly equal, and then no comparison of two models can fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 416
"""Rows of every model's embedding: a multiple of 32, not of 64; the tokenizer uses the first `TOKENS`."""
TOKENS = 400
PAD, BOS, EOS, UNK = 0, 1, 2, 3

MELS = 16
"""Mel channels of the tiny whisper."""


@dataclass(frozen=True)
class Tiny:
    """One architecture: its `model_type`, the auto class a user would open it with, and its small config."""

    model_type: str
    auto: str
    config: dict[str, Any] = field(default_factory=dict)


CAUSAL, MASKED, BASE = "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModel"
SEQ2SEQ, SPEECH = "AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq"


def _decoder(hidden: int, blocks: int, **more: Any) -> dict[str, Any]:
    """The llama family: 4 query heads, 2 key heads, positions to 256."""
    base = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    return base | more


def _encoder(hidden: int, blocks: int, **more: Any) -> dict[str, Any]:
    """The bert family: 4 heads, positions to 160 (roberta and mpnet start counting after the pad)."""
    base = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "max_position_embeddings": 160,
    }
    return base | more


def _seq2seq(hidden: int, **more: Any) -> dict[str, Any]:
    """The bart family: 2 encoder and 2 decoder blocks."""
    base = {
        "d_model": hidden,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 2 * hidden,
        "decoder_ffn_dim": 2 * hidden,
        "max_position_embeddings": 160,
        "decoder_start_token_id": BOS,
        "forced_eos_token_id": None,
    }
    return base | more


TINY: dict[str, Tiny] = {
    "llama": Tiny("llama", CAUSAL, _decoder(64, 3)),
    "qwen2": Tiny("qwen2", CAUSAL, _decoder(96, 2, tie_word_embeddings=True)),
    "qwen3": Tiny("qwen3", CAUSAL, _decoder(80, 2, head_dim=16, tie_word_embeddings=True)),
    "gemma3": Tiny(
        "gemma3_text",
        CAUSAL,
        _decoder(
            64,
            3,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            tie_word_embeddings=True,
        ),
    ),
    "mistral": Tiny("mistral", CAUSAL, _decoder(64, 2, head_dim=16, sliding_window=32)),
    "phi3": Tiny("phi3", CAUSAL, _decoder(96, 2, original_max_position_embeddings=256)),
    "gpt2": Tiny("gpt2", CAUSAL, {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "opt": Tiny(
        "opt",
        CAUSAL,
        {
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
    ),
    "gpt_neox": Tiny("gpt_neox", CAUSAL, _encoder(96, 2, max_position_embeddings=256, tie_word_embeddings=False)),
    "mixtral": Tiny("mixtral", CAUSAL, _decoder(64, 2, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3_moe": Tiny(
        "qwen3_moe",
        CAUSAL,
        _decoder(96, 2, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64),
    ),
    "bert": Tiny("bert", MASKED, _encoder(64, 2)),
    "distilbert": Tiny(
        "distilbert",
        MASKED,
        {"dim": 96, "hidden_dim": 192, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 160},
    ),
    "roberta": Tiny("roberta", MASKED, _encoder(64, 2)),
    "mpnet": Tiny("mpnet", BASE, _encoder(96, 3)),
    "electra": Tiny("electra", MASKED, _encoder(64, 2, embedding_size=32)),
    "deberta-v2": Tiny(
        "deberta-v2",
        MASKED,
        _encoder(
            64,
            2,
            relative_attention=True,
            max_relative_positions=-1,
            position_buckets=32,
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
        ),
    ),
    "t5": Tiny(
        "t5",
        SEQ2SEQ,
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_decoder_layers": 3,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": PAD,
        },
    ),
    "bart": Tiny("bart", SEQ2SEQ, _seq2seq(64)),
    "marian": Tiny("marian", SEQ2SEQ, _seq2seq(96, decoder_start_token_id=PAD)),
    "whisper": Tiny(
        "whisper",
        SPEECH,
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_mel_bins": MELS,
            "max_source_positions": 128,
            "max_target_positions": 128,
            "decoder_start_token_id": BOS,
            "begin_suppress_tokens": None,
        },
    ),
}

MORE: dict[str, Tiny] = {
    "qwen3-wide": Tiny("qwen3", CAUSAL, _decoder(64, 2, head_dim=32, tie_word_embeddings=True)),
    "qwen2-wide": Tiny("qwen2", CAUSAL, _decoder(128, 2, vocab_size=448, tie_word_embeddings=True)),
    "bert-classifier": Tiny("bert", "AutoModelForSequenceClassification", _encoder(64, 2)),
    "bert-tagger": Tiny("bert", "AutoModelForTokenClassification", _encoder(64, 2)),
    "bert-embedder": Tiny("bert", BASE, _encoder(64, 2)),
}
"""Other sizes, for formats and runtimes that want multiples of 32 and 64, and other heads."""

AUTO: dict[str, str] = {name: tiny.auto for name, tiny in (TINY | MORE).items()}
DECODERS: tuple[str, ...] = tuple(name for name in TINY if AUTO[name] == CAUSAL)
ENCODERS: tuple[str, ...] = tuple(name for name in TINY if AUTO[name] in (MASKED, BASE))
ENCODER_DECODERS: tuple[str, ...] = tuple(name for name in TINY if AUTO[name] in (SEQ2SEQ, SPEECH))


def tiny_config(name: str) -> Any:
    """The small config of architecture `name` (a key of TINY)."""
    tiny = (TINY | MORE)[name]
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    return AutoConfig.for_model(tiny.model_type, **{"vocab_size": VOCAB, **ids, **tiny.config})


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of architecture `name`, in eval mode; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = getattr(transformers, AUTO[name]).from_config(tiny_config(name))
        randomize(model)
    return model.eval()


def meta_model(name: str) -> PreTrainedModel:
    """The same model on the meta device: shapes and names, no data."""
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, AUTO[name]).from_config(tiny_config(name))
    return model.eval()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw every trainable weight of `model` from the global generator, so that a forward pass has signal."""
    drawn: set[int] = set()
    for module in model.modules():
        if "Sinusoidal" in type(module).__name__:  # computed from the position, not stored in checkpoints
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in drawn or not parameter.requires_grad:
                continue
            drawn.add(id(parameter))
            _draw(module, key, parameter)


def _draw(module: nn.Module, key: str, parameter: Tensor) -> None:
    if parameter.dim() == 1 or key.endswith("bias"):
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    elif isinstance(module, nn.Embedding):
        parameter.normal_(0.0, 0.3)
    else:
        fan_in = parameter.shape[0] if type(module).__name__ == "Conv1D" else parameter[0].numel()
        if parameter.dim() == 3 and not isinstance(module, nn.Conv1d):  # experts (E, O, I)
            fan_in = parameter.shape[-1]
        parameter.normal_(0.0, fan_in**-0.5)


def example_inputs(model: PreTrainedModel, name: str, rows: int = 2, length: int = 24) -> dict[str, Tensor]:
    """A batch for one forward pass of `model`: (rows, length) int64 ids or (rows, MELS, 256) mel features."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, TOKENS, (rows, length), generator=generator)
    if name == "whisper":
        frames = 2 * int(model.config.max_source_positions)
        features = torch.randn(rows, MELS, frames, generator=generator, dtype=torch.float32)
        return {"input_features": features.to(model.dtype), "decoder_input_ids": ids[:, :8]}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if AUTO[name] == SEQ2SEQ:
        inputs["decoder_input_ids"] = ids[:, : length // 2].flip(1).contiguous()
    return inputs


CORPUS = (
    "The lighthouse keeper climbed the stairs every evening at six and lit the lamp. Ships passed far out, "
    "and on clear nights he could count their lights. He wrote the number in a ledger, with the weather.",
    "Quantization maps a real number to one of a few integers. A scale says how far apart the integers lie, "
    "and a zero point says which of them stands for nothing. The error is the way to the nearest one.",
    "She asked for two tickets to the coast; the clerk said that the 10:45 was late again, by 20 minutes. "
    "\u201cThen we will have time for coffee,\u201d she answered, and they had.",
    "今天天气很好，我们一起去公园散步。孩子们在草地上放风筝，老人们坐在长椅上下棋。",
    "模型压缩把很大的网络变小，让它可以在普通的电脑上运行。我们用校准数据来决定每一层的比特数。",
    "def add(left: int, right: int) -> int:\n    return left + right\n\nprint(add(2, 3))\n",
)
"""What the tokenizer is trained on: prose, a little code, Chinese."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most TOKENS entries; any text survives encode and decode."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        show_progress=False,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny(name: str, folder: Path, dtype: str = "float32", shard: str | None = None) -> Path:
    """Write the tiny model `name` and the tokenizer to `folder`, as `save_pretrained` does; returns `folder`.

    dtype: `float32`, `bfloat16` or `float16`. shard: largest file (`100KB`), None for a single one.
    """
    model = tiny_model(name).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard or "5GB")
    tiny_tokenizer().save_pretrained(folder)
    return folder
