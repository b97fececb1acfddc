"""transformers, as anybody opens a folder: `from_pretrained` in float32, in the interpreter of compress itself."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from export.runtimes._kind import Arithmetic, Runtime
from export.runtimes._pipelines import HEARS, read, read_by_class, task_of
from export.runtimes._rules import GREEDY


class Session:
    """One opened folder."""

    def __init__(self, folder: str, threads: int, trusted: bool = False) -> None:
        """Open it by the class that its config names. Raises what transformers raises."""
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
        opener = _opener(config)
        more = {"trust_remote_code": True} if trusted else {}
        self.model = opener.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **more).eval()
        for parameter in self.model.parameters():  # with bitsandbytes, `weight` of norms keeps the dtype of the file
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
        self.torch = torch
        self.kind = _kind(self.model)
        self.tokens = int(getattr(config.get_text_config(), "vocab_size", 0))
        self.vocabulary = self.tokens if self.kind == "decoder" else 0
        self._auto, self._folder, self._trusted = transformers.AutoTokenizer, folder, trusted
        self._tokenizer: Any = None
        self._cache: Any = None
        self._client: Any = None
        taken = inspect.signature(self.model.forward).parameters
        if self.kind == "encoder-decoder":
            self.timed = self._timed
            _decode_at_once(self.model)
        self._past = "cache" if "cache" in taken else "past_key_values"  # its name since 5.24, and before

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """Logits where the model has them, else its first output, float32."""
        with self.torch.inference_mode():
            output = self.model(**{name: self.torch.from_numpy(np.asarray(a)) for name, a in inputs.items()})
        found = output.logits if "logits" in output else _first(output, self.torch.Tensor)
        return found.float().numpy()

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """n next tokens by argmax, with the cache."""
        told = [int(self.step(ids, True).argmax())]
        while len(told) < n:
            told.append(int(self.step(told[-1:], False).argmax()))
        return told

    def step(self, ids: list[int], fresh: bool) -> Any:
        """Logits (V,) after feeding ids."""
        with self.torch.inference_mode():
            past = {} if fresh else {self._past: self._cache}
            output = self.model(input_ids=self.torch.tensor([ids]), use_cache=True, **past)
        self._cache = output[self._past]
        return output.logits[0, -1].float().numpy()

    def _timed(self, ids: list[int], n: int) -> tuple[float, list[float]]:
        """Seconds of reading and of the first token written; what is heard is silence."""
        del n
        torch, config = self.torch, self.model.config
        given = {"input_ids": torch.tensor([ids])}
        if self.model.main_input_name == "input_features":
            given = {"input_features": torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)}
        begin = time.perf_counter()
        with torch.inference_mode():
            self.model(**given, decoder_input_ids=torch.tensor([[config.decoder_start_token_id or 0]]))
        return time.perf_counter() - begin, []

    def write(self, inputs: Mapping[str, Any], n: int) -> list[list[int]]:
        """Greedy ids for each row by the likeliest token, whatever else is asked for; what it began with left out."""
        from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

        given = {name: self.torch.from_numpy(np.asarray(a)) for name, a in inputs.items()}
        with self.torch.inference_mode():
            found = self.model.generate(**given, max_new_tokens=n, use_cache=_fits(self.model.config), **GREEDY)
        if isinstance(self.model, WhisperGenerationMixin):  # its `generate` leaves the beginning out itself
            return [list(row) for row in found.tolist()]
        begun = given["decoder_input_ids"].shape[1] if "decoder_input_ids" in given else 1
        return [row[begun:] for row in found.tolist()]

    def answer(self, asked: Any, n: int) -> tuple[str | list[int], str]:
        """What the model's pipeline says, or `generate` where it has none any more, greedy, whatever
        generation_config.json asks for."""
        if self.kind == "decoder":
            said = self._pipeline("text-generation")(
                asked, max_new_tokens=n, do_sample=False, num_beams=1, repetition_penalty=1.0, return_full_text=False,
                clean_up_tokenization_spaces=False,
            )  # fmt: skip
            return str(said[0]["generated_text"]), self._named("pipeline text-generation")
        if not isinstance(asked, str):
            heard = {**asked, "raw": np.asarray(asked["raw"], np.float32)}
            said = self._pipeline(HEARS)(heard, generate_kwargs={"max_new_tokens": n, **GREEDY})
            return str(said["text"]), self._named(f"pipeline {HEARS}")
        model = self._by_class("AutoModelForSeq2SeqLM")
        inputs = self.tokenizer([asked], return_tensors="pt")
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}  # BART knows no token_type_ids
        made = model.generate(**kept, max_new_tokens=n, use_cache=_fits(model.config), **GREEDY)
        return made[0, 1:].tolist(), self._named("AutoModelForSeq2SeqLM.generate")

    def read(self, texts: list[list[str]]) -> dict[str, Any] | None:
        """What the pipeline of the model's task makes of texts, or the model itself; None where transformers has no
        class for such models."""
        import transformers

        name, config = type(self.model).__name__, self.model.config
        task = task_of(name)
        if task is not None:
            return {"client": self._named(f"pipeline {task}"), **read(self._pipeline(task), task, config, texts)}
        auto = f"AutoModel{name[name.index('For') :]}"
        if not hasattr(transformers, auto):
            return None
        model, tensor = self._by_class(auto), self.torch.Tensor
        with self.torch.inference_mode():
            found = read_by_class(model, self.tokenizer, lambda output: _first(output, tensor).float(), texts)
        return {"client": self._named(auto), **found}

    def _pipeline(self, task: str) -> Any:
        """The folder's pipeline, opened as users do, in float32; the session's own model is given up for it."""
        import transformers

        if self._client is None:
            self.model = self._cache = None
            more = {"trust_remote_code": True} if self._trusted else {}
            self._client = transformers.pipeline(
                task, model=self._folder, dtype=self.torch.float32, device="cpu", **more
            )
        return self._client

    def _by_class(self, auto: str) -> Any:
        """The folder's model, opened in float32 by the class of transformers that its users name."""
        import transformers

        if self._client is None:
            self.model = self._cache = None
            more = {"trust_remote_code": True} if self._trusted else {}
            opened = {"dtype": self.torch.float32, "local_files_only": True, **more}
            self._client = getattr(transformers, auto).from_pretrained(self._folder, **opened).eval()
        return self._client

    def _named(self, what: str) -> str:
        import transformers

        return f"transformers {transformers.__version__}, {what}"

    def tokenize(self, text: str) -> list[int]:
        """Ids by the folder's tokenizer."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def chat(self, messages: list[dict[str, str]]) -> list[int] | None:
        """Ids of the prompt by the folder's own template."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        filled = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenize(filled)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, opened when it is first asked for."""
        if self._tokenizer is None:
            more = {"trust_remote_code": True} if self._trusted else {}
            self._tokenizer = self._auto.from_pretrained(self._folder, local_files_only=True, **more)
        return self._tokenizer


def _opener(config: Any) -> Any:
    import transformers

    name = (config.architectures or [""])[0]
    if hasattr(transformers, name):
        return getattr(transformers, name)
    causal = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def _fits(config: Any) -> bool:
    """Whether a cache can be used: transformers 5.24 makes T5's as deep as its encoder, whatever its decoder needs."""
    layers = int(getattr(config, "num_hidden_layers", 0))
    return int(getattr(config, "num_decoder_layers", 0) or 0) <= layers


def _kind(model: Any) -> str:
    from transformers.models.auto import modeling_auto

    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder"
    writes = type(model).__name__ in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return "decoder" if writes or (model.can_generate() and type(model).__name__.endswith("CausalLM")) else "encoder"


def _decode_at_once(model: Any) -> None:
    """What README tells who opens a W8A8 encoder-decoder: compressed-tensors 0.20 decodes in the model's own first
    forward, and `generate` runs the encoder before it; and the wrappers that it leaves make a plain dict of the
    encoder's output, in which the decoder asks for item 0."""
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    if compressor is None:
        return
    from compressed_tensors.offload import remove_dispatch

    if hasattr(model, "ct_decompress_hook"):
        compressor.decompress_model(model)
    remove_dispatch(model)


def _first(output: Any, tensor: Any) -> Any:
    return next(value for value in output.to_tuple() if isinstance(value, tensor) and value.is_floating_point())


def _open(folder: str, settings: Mapping[str, Any]) -> Session:
    return Session(folder, int(settings["threads"]), bool(settings.get("trust_remote_code")))


RUNTIME = Runtime(
    open=_open,
    formats={"compressed-tensors": Arithmetic(), "bitsandbytes": Arithmetic(), "gptq": Arithmetic()},
    distribution="transformers",
    client=True,
)
