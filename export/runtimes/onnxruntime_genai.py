"""onnxruntime-genai: decoders as its own model builder lays them out, run by its own generator."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.runtimes._kind import Arithmetic, Runtime


class Session:
    """An export, open."""

    kind = "decoder"

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        import onnxruntime_genai as og

        og.disable_telemetry_events()
        self.og = og
        said = json.loads((Path(folder) / "genai_config.json").read_text(encoding="utf-8"))
        self.vocabulary = int(said["model"]["vocab_size"])
        self.longest = int(said["model"]["context_length"])
        config = og.Config(folder)
        threads = {"intra_op_num_threads": int(settings["threads"])}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self.model = og.Model(config)
        self.tokenizer = og.Tokenizer(self.model)
        self.generator: Any = None

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """Logits (B, L, V), each row by itself."""
        import numpy as np

        rows = []
        for ids in inputs["input_ids"]:
            self._fresh(len(ids) + 1)
            self.generator.append_tokens(np.asarray(ids, dtype=np.int32))
            rows.append(np.array(self.generator.get_output("logits"), dtype=np.float32)[0])
        return np.stack(rows)

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """n next tokens by argmax; the generator itself chooses until it sees an end token."""
        self._fresh(min(self.longest, len(ids) + n + 1))
        self._append(ids)
        found: list[int] = []
        while len(found) < n and not self.generator.is_done():
            self.generator.generate_next_token()
            found.append(int(self.generator.get_next_tokens()[0]))
        if len(found) < n:  # past its end token, which the reference does not heed: by argmax of a new one
            logits = self.step([*ids, *found], True)
            while len(found) < n:
                found.append(int(logits.argmax()))
                logits = self.step(found[-1:], False)
        return found

    def step(self, ids: Sequence[int], fresh: bool) -> Any:
        """Logits (V,) after feeding `ids`."""
        import numpy as np

        if fresh:
            self._fresh(min(self.longest, len(ids) + 256))
        self._append(ids)
        return np.array(self.generator.get_logits(), dtype=np.float32).reshape(-1, self.vocabulary)[-1]

    def tokenize(self, text: str) -> list[int]:
        """Ids by the runtime's own tokenizer."""
        return [int(token) for token in self.tokenizer.encode(text)]

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int] | None:
        """Ids of the prompt that its chat template makes; None where it finds none."""
        try:
            filled = self.tokenizer.apply_chat_template(json.dumps(list(messages)), add_generation_prompt=True)
        except RuntimeError as error:
            if "Empty chat template" in str(error):  # 0.18
                return None
            raise
        return self.tokenize(filled)

    def answer(self, asked: Sequence[Mapping[str, str]] | str, n: int) -> tuple[list[int], str]:
        """What its README's loop says, greedy, whatever genai_config.json asks for."""
        import numpy as np

        tokenizer = self.og.Tokenizer(self.model)
        prompt = asked
        if not isinstance(asked, str):
            prompt = tokenizer.apply_chat_template(json.dumps(list(asked)), add_generation_prompt=True)
        ids = np.asarray(tokenizer.encode(prompt), dtype=np.int32)
        self.generator = None
        params = self.og.GeneratorParams(self.model)
        length = min(self.longest, len(ids) + n)
        params.set_search_options(max_length=length, do_sample=False, num_beams=1, repetition_penalty=1.0)
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        said = generator.get_sequence(0)[len(ids) :]
        return [int(token) for token in said], f"onnxruntime-genai {version('onnxruntime-genai')}, Generator"

    def _fresh(self, length: int) -> None:
        self.generator = None  # its cache first
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=length, do_sample=False)
        self.generator = self.og.Generator(self.model, params)

    def _append(self, ids: Sequence[int]) -> None:
        import numpy as np

        self.generator.append_tokens(np.asarray(ids, dtype=np.int32))


EXACT = Arithmetic(why="float32 sums in another order; codes become float32 before they are multiplied")
RUNTIME = Runtime(
    open=Session,
    formats={"onnx-genai": EXACT},
    distribution="onnxruntime-genai",
    client=True,
    packages=(
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.32.0",
        "transformers==5.23.0",
        "torch==2.13.0",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
    ),
    notes=("torch, transformers, onnx and onnx-ir are what its model builder needs; only exporting uses them",),
)
