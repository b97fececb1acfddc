"""optimum: an ONNX export opened by the `ORTModelFor...` class that its config names, as pipelines use it.

Its newest release asks for transformers below 4.58, so it lives in an environment of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from export.runtimes._kind import Arithmetic, Runtime
from export.runtimes._rules import without_rules

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


class Session:
    """One export, open."""

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        """settings: threads."""
        import onnxruntime
        import optimum.onnxruntime

        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        architecture = (self.config.get("architectures") or [""])[0]
        name = next((v for k, v in CLASSES.items() if architecture.endswith(k)), "ORTModelForFeatureExtraction")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(settings.get("threads") or 0)
        options.log_severity_level = 3
        self.model = getattr(optimum.onnxruntime, name).from_pretrained(
            folder, local_files_only=True, session_options=options
        )
        self.kind = "encoder-decoder" if self.config.get("is_encoder_decoder") else "encoder"
        self.vocabulary = int(self.config.get("vocab_size") or 0)

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
        """What `generate` writes for each row, greedy, without what it began with and without its end; compared with
        logits where the beginning is given."""
        import torch

        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        beginning = given.pop("decoder_input_ids", None)
        told = {} if beginning is None else {"decoder_input_ids": beginning}
        with nullcontext() if beginning is None else without_rules(self.model):
            made = self.model.generate(**given, **told, max_new_tokens=n, num_beams=1, do_sample=False).tolist()
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        found = []
        for row in made:
            kept = row[0 if beginning is None or row[0] != int(beginning[0, 0]) else beginning.shape[1] :]
            stop = next((at for at, token in enumerate(kept) if token in ends), len(kept))
            found.append(kept[:stop])
        return found

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
    notes=("pins transformers below 4.58",),
)
