"""transformers, as anybody opens a folder: `from_pretrained` in float32, in the interpreter of compress itself."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from export.runtimes._kind import Arithmetic, Runtime
from export.runtimes._rules import without_rules

TASKS = {"ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification"}
"""The end of a model class's name -> its pipeline."""
EMBEDS = "feature-extraction"


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
        self._asked: Any = None
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
        """Greedy ids for each row, what it began with left out.

        Where that is given, tokens are compared with logits (`without_rules`); an answer heeds all rules.
        """
        from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

        given = {name: self.torch.from_numpy(np.asarray(a)) for name, a in inputs.items()}
        with self.torch.inference_mode(), without_rules(self.model) if "decoder_input_ids" in given else nullcontext():
            found = self.model.generate(**given, max_new_tokens=n, do_sample=False, num_beams=1)
        if isinstance(self.model, WhisperGenerationMixin):  # its `generate` leaves the beginning out itself
            return [list(row) for row in found.tolist()]
        begun = given["decoder_input_ids"].shape[1] if "decoder_input_ids" in given else 1
        return [row[begun:] for row in found.tolist()]

    def answer(self, asked: list[dict[str, str]] | str, n: int) -> tuple[str, str]:
        """What `pipeline("text-generation")` says, greedy, whatever generation_config.json asks for."""
        said = self._pipeline("text-generation")(
            asked, max_new_tokens=n, do_sample=False, num_beams=1, repetition_penalty=1.0, return_full_text=False,
            clean_up_tokenization_spaces=False,
        )  # fmt: skip
        return str(said[0]["generated_text"]), self._client("text-generation")

    def read(self, texts: list[str]) -> dict[str, Any] | None:
        """What the pipeline of the model's task makes of texts; None where transformers has none."""
        name, config = type(self.model).__name__, self.model.config
        task = next((task for ending, task in TASKS.items() if name.endswith(ending)), None)
        if task is None and "For" in name:  # question-answering has no pipeline any more, others never had one
            return None
        asked: dict[str, Any] = {}
        if task == "text-classification":
            asked = {"top_k": None, "function_to_apply": "none"}
        elif task == "token-classification":
            asked = {"aggregation_strategy": "none", "ignore_labels": []}
        found = [self._pipeline(task or EMBEDS)(text, **asked) for text in texts]
        told = {"client": self._client(task or EMBEDS)}
        numbers = {label: int(number) for label, number in config.label2id.items()}
        if task == "token-classification":
            rows = [[[t["index"], numbers[t["entity"]], float(t["score"])] for t in text] for text in found]
            return {**told, "labels": rows}
        if task == "text-classification":
            scores = [{numbers[said["label"]]: float(said["score"]) for said in text} for text in found]
            return {**told, "values": [[row[number] for number in sorted(row)] for row in scores]}
        return {**told, "values": [text[0] for text in found]}

    def _pipeline(self, task: str) -> Any:
        """The folder's pipeline, opened as users do, in float32; the session's own model is given up for it."""
        import transformers

        if self._asked is None:
            self.model = self._cache = None
            more = {"trust_remote_code": True} if self._trusted else {}
            self._asked = transformers.pipeline(
                task, model=self._folder, dtype=self.torch.float32, device="cpu", **more
            )
        return self._asked

    def _client(self, task: str) -> str:
        import transformers

        return f"transformers {transformers.__version__}, pipeline {task}"

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
