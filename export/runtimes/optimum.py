"""optimum: an ONNX export opened by the `ORTModelFor...` class that its config names, as pipelines use it.

Its newest release asks for transformers below 4.58, so it lives in an environment of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.runtimes._kind import Arithmetic, Runtime
from export.runtimes._pipelines import read, read_by_class, task_of
from export.runtimes._rules import GREEDY, rules

CLASSES = {
    "ForSequenceClassification": "ORTModelForSequenceClassification",
    "ForTokenClassification": "ORTModelForTokenClassification",
    "ForQuestionAnswering": "ORTModelForQuestionAnswering",
    "ForMultipleChoice": "ORTModelForMultipleChoice",
    "ForMaskedLM": "ORTModelForMaskedLM",
    "WhisperForConditionalGeneration": "ORTModelForSpeechSeq2Seq",
    "ForConditionalGeneration": "ORTModelForSeq2SeqLM",
    "MTModel": "ORTModelForSeq2SeqLM",
}
"""The end of a model class's name -> optimum's class; others are embedders."""
NEWER = "TokenizersBackend"
"""What transformers 5 calls a PreTrainedTokenizerFast in files that it writes; 4.57 does not know the name."""
READS = ["input_ids", "attention_mask"]
"""What that one makes; 4.57's also says which of two texts a token is of."""


class Session:
    """One export, open."""

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        """settings: threads."""
        import onnxruntime
        import optimum.onnxruntime

        self.folder, self.trusted = folder, bool(settings.get("trust_remote_code"))
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.architecture = (self.config.get("architectures") or [""])[0]
        name = next((v for k, v in CLASSES.items() if self.architecture.endswith(k)), "ORTModelForFeatureExtraction")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(settings.get("threads") or 0)
        options.log_severity_level = 3
        self.model = getattr(optimum.onnxruntime, name).from_pretrained(
            folder, local_files_only=True, session_options=options
        )
        self.kind = "encoder-decoder" if self.config.get("is_encoder_decoder") else "encoder"
        self.vocabulary = int(self.config.get("vocab_size") or 0)
        if self.kind == "encoder-decoder":  # Whisper's generate of 4.57 takes the file's word where it is asked for 0
            self.model.generation_config.update(**GREEDY)

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """The first output, float32."""
        import torch

        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        if "input_ids" in given:
            given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
        if self.kind == "encoder-decoder":
            given = self._written(given)
        output = self.model(**given)
        return next(value for value in output.values() if value is not None).float().numpy()

    def write(self, inputs: Mapping[str, Any], n: int) -> list[list[int]]:
        """What `generate` writes for each row, greedy, without what it began with and without its end."""
        import torch

        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        beginning = given.pop("decoder_input_ids", None)
        told = {} if beginning is None else {"decoder_input_ids": beginning}
        made = self.model.generate(**given, **told, max_new_tokens=n).tolist()
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        found = []
        for row in made:
            kept = row[0 if beginning is None or row[0] != int(beginning[0, 0]) else beginning.shape[1] :]
            stop = next((at for at, token in enumerate(kept) if token in ends), len(kept))
            found.append(kept[:stop])
        return found

    def answer(self, asked: Any, n: int) -> tuple[list[int], str]:
        """Ids that `generate` writes of a text or a sound, greedy, whatever generation_config.json asks for."""
        import numpy as np

        if isinstance(asked, str):
            made = self._made("AutoTokenizer")([asked], return_tensors="pt")
            given = {name: made[name] for name in ("input_ids", "attention_mask")}
        else:
            wave = np.asarray(asked["raw"], np.float32)
            extractor = self._made("AutoFeatureExtractor")
            made = extractor(wave, sampling_rate=asked["sampling_rate"], return_tensors="pt")
            given = {"input_features": made["input_features"]}
        written = self.model.generate(**given, max_new_tokens=n)[0].tolist()
        begins = written[:1] == [rules(Path(self.folder)).start]  # Whisper's leaves its own beginning out
        return written[1:] if begins else written, self._named(f"{type(self.model).__name__}.generate")

    def read(self, texts: list[list[str]]) -> dict[str, Any] | None:
        """What the pipeline of the model's task makes of texts with optimum's model in it, or that model itself."""
        from transformers import pipeline

        tokenizer, task = self._made("AutoTokenizer"), task_of(self.architecture)
        if task is None:
            found = read_by_class(self.model, tokenizer, lambda output: next(iter(output.values())).float(), texts)
            return {"client": self._named(type(self.model).__name__), **found}
        opened = pipeline(task, model=self.model, tokenizer=tokenizer)
        return {"client": self._named(f"pipeline {task}"), **read(opened, task, self.model.config, texts)}

    def _made(self, auto: str) -> Any:
        """The folder's tokenizer or feature extractor, by a class of transformers."""
        import transformers

        file = Path(self.folder) / "tokenizer_config.json"
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        more: dict[str, Any] = {}
        if auto == "AutoTokenizer" and told.get("tokenizer_class") == NEWER:
            auto, more = "PreTrainedTokenizerFast", {"model_input_names": told.get("model_input_names", READS)}
        opener = getattr(transformers, auto)
        return opener.from_pretrained(self.folder, local_files_only=True, trust_remote_code=self.trusted, **more)

    def _named(self, what: str) -> str:
        return f"optimum-onnx {version('optimum-onnx')}, {what}"

    def tokenize(self, text: str) -> list[int] | None:
        """None: its tokenizer is transformers'."""
        del text
        return None

    def _written(self, given: dict[str, Any]) -> dict[str, Any]:
        """Inputs of a first step; where only ids are given, for a latency, they are what is written."""
        import torch

        if "decoder_input_ids" not in given:
            given["decoder_input_ids"] = given["input_ids"][:, :1]
        wanted = {"input_features"} if "num_mel_bins" in self.config else {"input_ids", "attention_mask"}
        if "input_features" in wanted and "input_features" not in given:
            shape = (len(given["input_ids"]), self.config["num_mel_bins"], 2 * self.config["max_source_positions"])
            given["input_features"] = torch.zeros(shape)
        return {name: value for name, value in given.items() if name in {*wanted, "decoder_input_ids"}}


RUNTIME = Runtime(
    open=Session,
    formats={"onnx": Arithmetic(why="float32 sums in another order, products of integers at int8", integers=True)},
    distribution="optimum-onnx",
    packages=("optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6", "onnxruntime==1.23.2", "torch==2.8.0"),
    client=True,
    notes=("pins transformers below 4.58",),
)
