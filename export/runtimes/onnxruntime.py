"""onnxruntime: encoders as one graph; models that write as an encoder and two decoders, greedy, keys and values kept.

`device: cuda` asks for the CUDA provider and falls back to the CPU where the installed package has none (the gpu extra
installs onnxruntime-gpu). Where the processor has no VNNI, products of int8 would saturate in 16 bits; the session asks
for exact ones (`session.x64quantprecision`).
Source: onnxruntime_session_options_config_keys.h; providers: its documentation of execution providers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from export.runtimes import _onnx_probe
from export.runtimes._kind import Arithmetic, Runtime
from export.runtimes._rules import rules

ENCODER, DECODER, WITH_PAST = "encoder_model", "decoder_model", "decoder_with_past_model"
WARM = 2  # runs before any is timed


class Session:
    """One export, open."""

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        """settings: threads; device, cpu or cuda."""
        self.folder = Path(folder)
        self.config = _json(self.folder / "config.json")
        self.kind = "encoder-decoder" if self.config.get("is_encoder_decoder") else "encoder"
        self.vocabulary = int(self.config.get("vocab_size") or 0)
        self.settings, self.rules = settings, rules(self.folder)
        names = (ENCODER, DECODER, WITH_PAST) if self.kind == "encoder-decoder" else ("model",)
        self.graphs = {name: self._open(name) for name in names}
        self.reads = {name: {i.name: i for i in graph.get_inputs()} for name, graph in self.graphs.items()}

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """The first output; of a model that writes, logits (B, T, V) of what `decoder_input_ids` are followed by.

        Half of them come from the first decoder, half from the one with past, as both do when it writes.
        """
        import numpy as np

        if self.kind == "encoder":
            return self._ask("model", inputs)[0]
        told = self._read(inputs)
        ids = told["input_ids"]
        half = max(1, ids.shape[1] // 2)
        logits, kept = self._step(DECODER, {**told, "input_ids": ids[:, :half]})
        if half == ids.shape[1]:
            return logits
        more, _ = self._step(WITH_PAST, {**told, **kept, "input_ids": ids[:, half:]})
        return np.concatenate([logits, more], 1)

    def all(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Every output of an encoder by name."""
        names = [output.name for output in self.graphs["model"].get_outputs()]
        return dict(zip(names, self._ask("model", inputs), strict=True))

    def write(self, inputs: Mapping[str, Any], n: int) -> list[list[int]]:
        """At most n tokens for each row, greedy, up to the end token; tokens never said are left out as in
        generation_config.json. `decoder_input_ids`: what all rows begin with."""
        import numpy as np

        told = self._read(inputs)
        rows = len(told["encoder_hidden_states"])
        if "decoder_input_ids" not in inputs:
            told["input_ids"] = self._beginnings(told)
        written: list[list[int]] = [[] for _ in range(rows)]
        done = [False] * rows
        made, kept = self._step(DECODER, told)
        for turn in range(n):
            logits = made[:, -1].copy()
            self.rules.heed(logits, turn)
            chosen = logits.argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                done[row] = done[row] or token in self.rules.ends
                if not done[row]:
                    written[row].append(token)
            if all(done) or turn == n - 1:
                break
            made, more = self._step(WITH_PAST, {**told, **kept, "input_ids": chosen[:, None].astype(np.int64)})
            kept |= more
        return written

    def answer(self, asked: Any, n: int) -> tuple[list[int], str]:
        """Ids that `write` makes of a text or a sound, tokens or features made by transformers."""
        import numpy as np
        import onnxruntime
        from transformers import AutoFeatureExtractor, AutoTokenizer

        trusted = bool(self.settings.get("trust_remote_code"))
        opened = {"local_files_only": True, "trust_remote_code": trusted}
        if isinstance(asked, str):
            inputs = dict(AutoTokenizer.from_pretrained(self.folder, **opened)([asked], return_tensors="np"))
        else:
            extractor = AutoFeatureExtractor.from_pretrained(self.folder, **opened)
            made = extractor(
                np.asarray(asked["raw"], np.float32), sampling_rate=asked["sampling_rate"], return_tensors="np"
            )
            inputs = {"input_features": made["input_features"]}
        told = {name: a.astype("float32" if a.dtype.kind == "f" else "int64") for name, a in inputs.items()}
        return self.write(told, n)[0], f"onnxruntime {onnxruntime.__version__}, InferenceSession"

    def read(self, texts: list[list[str]]) -> dict[str, Any] | None:
        """What a session makes of texts in one batch, their tokens made by transformers: what README shows."""
        import onnxruntime
        from transformers import AutoTokenizer

        session = self._open("model")
        if any(len(wanted.shape) != 2 for wanted in session.get_inputs()):  # several texts in one: multiple choice
            return None
        trusted = bool(self.settings.get("trust_remote_code"))
        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=trusted)
        made = dict(tokenizer(*(list(part) for part in zip(*texts, strict=True)), padding=True, return_tensors="np"))
        mask = made["attention_mask"]
        inputs = {i.name: made.get(i.name, mask * 0).astype("int64") for i in session.get_inputs()}
        output = session.run(None, inputs)[0].astype("float32")
        by_token = output.shape[:2] == mask.shape
        found = [(row[seen.astype(bool)] if by_token else row).tolist() for row, seen in zip(output, mask, strict=True)]
        return {"client": f"onnxruntime {onnxruntime.__version__}, InferenceSession", "values": found}

    def tokenize(self, text: str) -> list[int] | None:
        """None: onnxruntime has no tokenizer."""
        del text
        return None

    def _read(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of a first step: what the encoder makes of what is read, and what is written already."""
        import numpy as np

        given = dict(inputs)
        written = given.pop("decoder_input_ids", None)
        hears = "input_features" in self.reads[ENCODER]
        if hears and "input_features" not in given:  # a latency is asked for, by token ids
            written = given["input_ids"]
            shape = [1 if isinstance(n, str) else n for n in self.reads[ENCODER]["input_features"].shape]
            given["input_features"] = np.zeros((len(written), *shape[1:]), np.float32)
        hidden = self._ask(ENCODER, given)[0]
        if written is None:
            written = np.full((len(hidden), 1), self.rules.start, np.int64)
        mask = given.get("attention_mask")
        if mask is None and not hears:
            mask = np.ones(given["input_ids"].shape, np.int64)
        return {"encoder_hidden_states": hidden, "input_ids": written, "encoder_attention_mask": mask}

    def _beginnings(self, told: Mapping[str, Any]) -> Any:
        """What each row begins with (B, T); told: of `_read`. Languages are detected where none is said."""
        import numpy as np

        logits: list[Any] = []

        def preferred(row: int, tokens: Sequence[int]) -> int:
            if not logits:
                logits.append(self._step(DECODER, told)[0][:, -1])
            return tokens[int(logits[0][row, list(tokens)].argmax())]

        rows = range(len(told["encoder_hidden_states"]))
        found = [self.rules.beginning(partial(preferred, row)) for row in rows]
        return np.asarray(found, np.int64)

    def _step(self, name: str, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        found = self._ask(name, given)
        names = [output.name for output in self.graphs[name].get_outputs()]
        kept = {f"past_key_values{n[len('present') :]}": v for n, v in zip(names[1:], found[1:], strict=True)}
        return found[0], kept

    def _ask(self, name: str, given: Mapping[str, Any]) -> Any:
        import numpy as np

        told = {}
        for wanted in self.reads[name]:
            value = given.get(wanted)
            if value is None and wanted in ("attention_mask", "token_type_ids"):
                like = given["input_ids"]
                value = np.ones_like(like) if wanted == "attention_mask" else np.zeros_like(like)
            if value is None:
                raise ValueError(f"{name}.onnx reads {wanted}, which was not given")
            told[wanted] = value
        return self.graphs[name].run(None, told)

    def _open(self, name: str) -> Any:
        path = self.folder / f"{name}.onnx"
        if not path.is_file():  # a model repository
            path = self.folder / name / "1" / "model.onnx"
        return _session(path, self.settings)


def _session(path: Path, settings: Mapping[str, Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(settings.get("threads") or 0)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not _has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=providers(settings))


def timed(path: str, settings: Mapping[str, Any], axes: Mapping[str, int], least: int, seconds: float) -> list[float]:
    """Seconds of each run of a graph on invented inputs, `least` of them at least and as many as `seconds` hold.

    axes: sizes of named axes (others are 1), and `vocabulary`, how many ids there are.
    """
    session = _session(Path(path), settings)
    given = {wanted.name: _invented(wanted, axes) for wanted in session.get_inputs()}
    for _ in range(WARM):
        session.run(None, given)
    taken: list[float] = []
    while len(taken) < least or sum(taken) < seconds:
        begin = time.perf_counter()
        session.run(None, given)
        taken.append(time.perf_counter() - begin)
    return taken


def _invented(wanted: Any, axes: Mapping[str, int]) -> Any:
    """Some input of the shape and type that a graph asks for; texts are as long as the axes say."""
    import numpy as np

    shape = [axes.get(axis, 1) if isinstance(axis, str) else axis or 1 for axis in wanted.shape]
    draw = np.random.default_rng(0)
    if "float" in wanted.type:
        return draw.standard_normal(shape, dtype=np.float32)
    if wanted.name == "input_ids":
        return draw.integers(0, axes.get("vocabulary", 1), shape, dtype=np.int64)
    return np.full(shape, wanted.name == "attention_mask", np.int64)


def providers(settings: Mapping[str, Any]) -> list[Any]:
    """Execution providers, best first: CUDA where it is asked for and there."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    wanted = str(settings.get("device") or "cpu")
    found: list[Any] = []
    if wanted.startswith("cuda") and "CUDAExecutionProvider" in there:
        number = int(wanted.partition(":")[2] or 0)
        found.append(("CUDAExecutionProvider", {"device_id": number}))
    return [*found, "CPUExecutionProvider"]


def _has_vnni() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_vnni" in text or "avx_vnni" in text


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


RUNTIME = Runtime(
    open=Session,
    formats={
        "onnx": Arithmetic(
            why="float32 sums in another order, and products of integers where inputs are int8", integers=True
        )
    },
    distribution="onnxruntime",
    probe=_onnx_probe.probe,
    timed=timed,
    extra="onnx",
    client=True,
    notes=("opens encoders and encoder-decoders; decoder-only language models are for onnxruntime-genai",),
)
