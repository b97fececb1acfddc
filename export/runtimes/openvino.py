"""OpenVINO on the CPU: decoders with their cache as state, encoders by their first output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.runtimes._kind import Arithmetic, Runtime

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""Where a CPU has bfloat16 the plugin takes it by itself, and an IR cannot say otherwise."""


class Session:
    """An export, open."""

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        import openvino as ov
        from transformers import AutoTokenizer

        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        core = ov.Core()
        self.folder, self.trusted = folder, bool(settings.get("trust_remote_code"))
        self.asked = {"INFERENCE_NUM_THREADS": int(settings["threads"]), "PERFORMANCE_HINT": "LATENCY", **EXACT}
        self.compiled: Any = core.compile_model(str(Path(folder) / "openvino_model.xml"), "CPU", self.asked)
        self.request: Any = self.compiled.create_infer_request()
        self.names = {name for port in self.compiled.inputs for name in port.get_names()}
        decoder = "beam_idx" in self.names
        self.kind = "decoder" if decoder else "encoder"
        self.vocabulary = int(config["vocab_size"]) if decoder else 0
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trusted)
        self.past = 0

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """Logits (B, L, V), each row by itself, or the first output of an encoder."""
        import numpy as np

        if self.kind == "decoder":
            return np.stack([self._feed(ids, True) for ids in inputs["input_ids"]])
        given = {name: value for name, value in inputs.items() if name in self.names}
        if "token_type_ids" in self.names and "token_type_ids" not in given:
            given["token_type_ids"] = np.zeros_like(given["input_ids"])
        return np.array(self.request.infer(given)[0], dtype=np.float32)

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """n next tokens by argmax."""
        found: list[int] = []
        logits = self.step(ids, True)
        while len(found) < n:
            found.append(int(logits.argmax()))
            if len(found) < n:
                logits = self.step(found[-1:], False)
        return found

    def step(self, ids: Sequence[int], fresh: bool) -> Any:
        """Logits (V,) after feeding `ids`."""
        return self._feed(ids, fresh)[-1]

    def tokenize(self, text: str) -> list[int]:
        """Ids by transformers' tokenizer of the export, in the runtime's environment."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int] | None:
        """Ids of the prompt that the chat template makes."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        filled = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return self.tokenize(filled)

    def answer(self, asked: Sequence[Mapping[str, str]] | str, n: int) -> tuple[list[int], str]:
        """What optimum-intel's model says, greedy, whatever generation_config.json asks for."""
        from optimum.intel import OVModelForCausalLM

        self.request = self.compiled = None
        model = OVModelForCausalLM.from_pretrained(self.folder, ov_config=self.asked, trust_remote_code=self.trusted)
        if isinstance(asked, str):
            inputs = self.tokenizer(asked, return_tensors="pt")
        else:
            inputs = self.tokenizer.apply_chat_template(
                list(asked), add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        made = model.generate(**inputs, max_new_tokens=n, do_sample=False, num_beams=1, repetition_penalty=1.0)
        kept = made[0][inputs["input_ids"].shape[1] :]
        return kept.tolist(), f"optimum-intel {version('optimum-intel')}, OVModelForCausalLM"

    def read(self, texts: Sequence[Sequence[str]]) -> dict[str, Any]:
        """What the compiled model makes of texts, each by itself."""
        found = []
        for text in texts:
            told = self.tokenizer(*text, return_tensors="np")
            found.append(self.run({name: value.astype("int64") for name, value in told.items()})[0].tolist())
        return {"client": f"openvino {version('openvino')}, compile_model", "values": found}

    def _feed(self, ids: Sequence[int], fresh: bool) -> Any:
        import numpy as np

        if fresh:
            self.request.reset_state()
            self.past = 0
        count, whole = len(ids), self.past + len(ids)
        given = {
            "input_ids": np.asarray([ids], dtype=np.int64),
            "attention_mask": np.ones((1, whole), dtype=np.int64),
            "position_ids": np.arange(self.past, whole, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        result = self.request.infer({name: value for name, value in given.items() if name in self.names})
        self.past = whole
        return np.array(result["logits"], dtype=np.float32)[0, -count:]


RUNTIME = Runtime(
    open=Session,
    formats={"openvino": Arithmetic(why="float32 sums in another order; codes become float32 before they multiply")},
    distribution="openvino",
    client=True,
    packages=(
        "openvino==2026.4.1",
        "nncf==3.4.0",
        "optimum-intel==2.2.0",
        "transformers==5.5.4",
        "torch==2.13.0",
    ),
    unwanted=("torchvision",),
    notes=("torch, nncf and optimum-intel are what conversion needs; only exporting uses them",),
)
