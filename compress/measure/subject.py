"""One model as plain transformers opens it: logits, hidden states, greedy tokens, timings.

Runs inside the worker process (worker.py); nothing of the compressing side is used to open a subject,
so what is measured is what a user of `from_pretrained` gets.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.core.device import release_memory
from compress.core.errors import CompressError, InputError, MissingExtraError, ModelError
from compress.core.types import torch_dtype
from compress.measure.size import Located, locate

DECODER, ENCODER, ENCODER_DECODER = "decoder", "encoder", "encoder-decoder"


@dataclass(frozen=True)
class WorkerSettings:
    """How a worker opens its model. threads 0: the physical cores. dtype: of the computation."""

    dtype: str = "float32"
    threads: int = 0
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Description:
    """What a subject is, from its config alone.

    kind: `decoder`, `encoder` or `encoder-decoder`. parameters: of the uncompressed architecture, shared
    ones once. positions: the longest input, None where the config sets none. quantized: quant_method or
    None. reads_text: it takes token ids (whisper does not, and then only its size can be measured).
    """

    subject: str
    kind: str
    architecture: str
    vocabulary: int
    parameters: int
    positions: int | None
    quantized: str | None
    reads_text: bool


def describe(subject: str, settings: WorkerSettings) -> Description:
    """Read a subject's config; no weight is opened. Raises ModelError."""
    found = locate(subject, settings.allow_pickle)
    return _description(found, load_config(found, settings), settings)


class Subject:
    """A loaded model and its cursor: `forward` keeps the logits that `rows` hands out piece by piece."""

    def __init__(self, subject: str, settings: WorkerSettings) -> None:
        """Open `subject`. Raises ModelError when it cannot be, CompressError when memory runs out."""
        self.found = locate(subject, settings.allow_pickle)
        self.settings = settings
        config = load_config(self.found, settings)
        self.description = _description(self.found, config, settings)
        begin = time.perf_counter()
        kind = self.description.kind
        self.model = load_model(self.found, config, _auto_class(kind), settings, pooler=kind != DECODER)
        self.load_seconds = time.perf_counter() - begin
        self.accepted = set(inspect.signature(self.model.forward).parameters)
        self.tokenizer: Any = None
        self.kept: Tensor | None = None

    @torch.inference_mode()
    def forward(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Run all of `ids` (L,) at once and keep logits (L, V), or hidden states (L, D) of an encoder."""
        self._check(ids)
        self.kept = None
        out = self.model(**self._inputs(torch.tensor([list(ids)])), use_cache=False)
        self.kept = self._output(out)[0]
        return tuple(self.kept.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of what `forward` kept, (stop - start, V or D) float32. Raises CompressError."""
        if self.kept is None:
            raise CompressError("rows were asked for before a forward pass; call forward first")
        return self.kept[start:stop].float().contiguous()

    def drop(self) -> None:
        """Free what `forward` kept."""
        self.kept = None
        release_memory()

    @torch.inference_mode()
    def greedy(self, ids: Sequence[int], n: int, stop: frozenset[int] = frozenset()) -> list[int]:
        """Up to n next tokens by argmax, ending after one in `stop`. Raises ModelError for an encoder."""
        if self.description.kind != DECODER:
            raise ModelError(f"{self.found.name} is an {self.description.kind}; only decoders write text")
        self._check(ids)
        told: list[int] = []
        step, cache = torch.tensor([list(ids)]), None
        for _ in range(n):
            logits, cache = self._step(step, cache)
            told.append(int(logits[0, -1].argmax()))
            if told[-1] in stop:
                break
            step = torch.tensor([told[-1:]]) if cache is not None else torch.tensor([[*ids, *told]])
        return told

    def generate(self, prompts: Sequence[str], n: int) -> list[dict[str, Any]]:
        """Greedy continuations of `prompts`, through the chat template where there is one.

        Each {"text", "ids"}; ids are the new ones, ending at the first end token, which text leaves out.
        """
        tokenizer = self._tokenizer()
        stop = self._stops()
        answers = []
        for prompt in prompts:
            ids = _encode(tokenizer, prompt)
            new = self.greedy(ids, n, stop)
            answers.append({"text": tokenizer.decode(new, skip_special_tokens=True), "ids": new})
        return answers

    @torch.inference_mode()
    def latency(self, prompt: int, decode: int, repeats: int, warmup: int) -> dict[str, Any]:
        """Time `repeats` runs after `warmup` untimed ones, on random ids from a fixed seed.

        prefill_seconds: (repeats,) one pass over `prompt` tokens, logits of the last only where the model
        can. step_seconds: (repeats, decode) single-token steps with the KV cache; empty rows for encoders.
        """
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.description.vocabulary, (1, prompt), generator=generator)
        prefill, steps = [], []
        for turn in range(warmup + repeats):
            begin = time.perf_counter()
            if self.description.kind == DECODER:
                logits, cache = self._step(ids, None)
            else:
                self.model(**self._inputs(ids))
            first = time.perf_counter() - begin
            taken: list[float] = []
            for _ in range(decode if self.description.kind == DECODER else 0):
                if cache is None:
                    raise ModelError(f"{self.found.name} keeps no KV cache; its decoding cannot be timed")
                begin = time.perf_counter()
                logits, cache = self._step(logits[:, -1].argmax(-1, keepdim=True), cache)
                taken.append(time.perf_counter() - begin)
            if turn >= warmup:
                prefill.append(first)
                steps.append(taken)
        return {"prefill_seconds": prefill, "step_seconds": steps, "threads": torch.get_num_threads()}

    def _step(self, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits (1, 1 or more, V) after `ids`, and the grown cache (None when the model keeps none)."""
        extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self.accepted else {}
        name = "cache" if "cache" in self.accepted else "past_key_values"  # renamed in transformers 5.24
        if name not in self.accepted:
            return self.model(input_ids=ids, **extra).logits, None
        out = self.model(input_ids=ids, use_cache=True, **{name: cache}, **extra)
        return out.logits, getattr(out, name)

    def _inputs(self, ids: Tensor) -> dict[str, Tensor]:
        if self.description.kind == ENCODER_DECODER:
            return {"input_ids": ids, "decoder_input_ids": ids}
        return {"input_ids": ids}

    def _output(self, out: Any) -> Tensor:
        kept: Tensor = out.logits if self.description.kind == DECODER else out.last_hidden_state
        return kept

    def _check(self, ids: Sequence[int]) -> None:
        size, most = len(ids), self.description.positions
        if not self.description.reads_text:
            raise ModelError(f"{self.found.name} does not read token ids; only text models can be measured")
        if not size:
            raise InputError(f"{self.found.name} was given no token; give at least one")
        if most is not None and size > most:
            raise InputError(f"{size} tokens are more than the {most} positions of {self.found.name}; cut them")
        worst = max(max(ids), min(ids), key=lambda i: abs(i - self.description.vocabulary / 2))
        if not 0 <= worst < self.description.vocabulary:
            raise ModelError(
                f"token id {worst} lies outside the vocabulary of {self.found.name}, which has "
                f"{self.description.vocabulary} tokens; use the tokenizer that belongs to it"
            )

    def _stops(self) -> frozenset[int]:
        config = getattr(self.model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        if ends is None:
            ends = self.tokenizer.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(self.found, self.settings)
        return self.tokenizer


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(prompt)["input_ids"])


def _where(found: Located, settings: WorkerSettings) -> dict[str, Any]:
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": found.folder,
        "trust_remote_code": settings.trust_remote_code,
    }
    if found.gguf_file:
        where["gguf_file"] = found.gguf_file
    if found.local:
        where["local_files_only"] = True
    return where


def load_config(found: Located, settings: WorkerSettings) -> Any:
    """The config of a located model. Raises ModelError."""
    if found.gguf_file:
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise MissingExtraError("gguf", "gguf") from None
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(**_where(found, settings))
    except Exception as error:  # OSError, ValueError, KeyError, and what remote code raises
        raise _cannot_open(found.name, error) from None


def _kind(config: Any) -> str:
    """By transformers' own tables: a causal model that no masked head exists for is a decoder."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED,
    )

    if getattr(config, "is_encoder_decoder", False):
        return ENCODER_DECODER
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return DECODER
    causal, masked = config.model_type in CAUSAL, config.model_type in MASKED
    return DECODER if causal and (not masked or getattr(config, "is_decoder", False)) else ENCODER


def _auto_class(kind: str) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM if kind == DECODER else transformers.AutoModel


def _description(found: Located, config: Any, settings: WorkerSettings) -> Description:
    kind = _kind(config)
    text = config.get_text_config()
    quantization = getattr(config, "quantization_config", None) or {}
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    method = quantization.get("quant_method")
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    model = _skeleton(config, kind, settings)
    return Description(
        found.name,
        kind,
        (getattr(config, "architectures", None) or [type(config).__name__])[0],
        int(getattr(text, "vocab_size", 0) or 0),
        sum(parameter.numel() for parameter in model.parameters()),
        positions - _first_position(model) if isinstance(positions, int) and positions > 0 else None,
        str(getattr(method, "value", method)) if method else None,
        "input_ids" in inspect.signature(model.forward).parameters,
    )


def _first_position(model: Any) -> int:
    """The position of the first token: roberta and its kin start after the padding row, others at 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def _skeleton(config: Any, kind: str, settings: WorkerSettings) -> Any:
    """The dense architecture on the meta device: nothing is allocated."""
    try:
        with torch.device("meta"):
            return _auto_class(kind).from_config(config, trust_remote_code=settings.trust_remote_code)
    except Exception as error:
        raise _cannot_open(config.name_or_path or config.model_type, error) from None


def load_tokenizer(found: Located, settings: WorkerSettings) -> Any:
    """The tokenizer of a located model. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**_where(found, settings))
    except Exception as error:  # tokenizers raise bare Exception
        raise _cannot_open(f"the tokenizer of {found.name}", error) from None


def load_model(found: Located, config: Any, auto: Any, settings: WorkerSettings, pooler: bool = False) -> Any:
    """A located model as the class `auto` opens it, in eval mode. pooler: it may lack the weights of one.

    Raises ModelError, also for weights that are not there; CompressError when memory runs out.
    """
    safe = None if found.gguf_file or settings.allow_pickle else True
    try:
        model, info = auto.from_pretrained(
            **_where(found, settings),
            config=config,
            dtype=torch_dtype(settings.dtype),
            use_safetensors=safe,
            output_loading_info=True,
        )
    except CompressError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise _cannot_open(found.name, error) from None
    # a pooler is not part of last_hidden_state, and checkpoints with another head do not have one;
    # sinusoidal positions are computed, and not every architecture saves them
    missing = sorted(
        key
        for key in info["missing_keys"]
        if not (pooler and "pooler" in key)
        and "Sinusoidal" not in type(model.get_submodule(key.rpartition(".")[0])).__name__
    )
    if missing:
        raise ModelError(
            f"{found.name} lacks {len(missing)} weights ({', '.join(missing[:3])}), which transformers would "
            "fill with random numbers; fetch or save the model again"
        )
    return model.eval()


def _cannot_open(name: str, error: Exception) -> CompressError:
    """One sentence from whatever a library raised."""
    said = " ".join(str(error).split())[:240] or type(error).__name__
    if isinstance(error, MemoryError) or "not enough memory" in said or "can't allocate memory" in said:
        return CompressError(f"{name} does not fit in memory ({said}); try --dtype bfloat16 or a larger machine")
    if "couldn't connect" in said.lower() or "not a valid model identifier" in said:
        return ModelError(f"{name} is neither a local folder nor a model the hub gives; check the name or the network")
    if "trust_remote_code" in said:
        return ModelError(f"{name} needs code from its repository; pass --trust-remote-code if you trust it")
    remedy = "check that the folder is complete and that transformers knows the architecture"
    return ModelError(f"{name} cannot be opened by transformers ({type(error).__name__}: {said}); {remedy}")
