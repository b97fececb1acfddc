"""llama.cpp through the bindings of llama-cpp-python: what llama-server and Ollama run, built on this machine."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.runtimes._kind import Arithmetic, Runtime

FILE = "model.gguf"
CONTEXT = 2048
BATCH = 512


class Session:
    """A GGUF file, open. Logits are asked for where they are read: all of a prompt would not fit for long ones."""

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        import numpy as np
        from llama_cpp import llama_cpp

        self.lib, self.np = llama_cpp, np
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        file = Path(folder) / FILE
        chosen = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), chosen)
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {FILE}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.kind = "decoder" if self._text("general.architecture") != "bert" else "encoder"
        self.threads = int(settings["threads"])
        self.context = self._context()
        self.position = 0
        decoder = self.kind == "decoder"
        self.tokens = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self.vocabulary = self.tokens if decoder else 0
        self.width = self.vocabulary or int(llama_cpp.llama_model_n_embd(self.model))

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """Logits, or hidden states of an embedder, of every token; padding rows stay 0."""
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", self.np.ones_like(ids))
        found = self.np.zeros((*ids.shape, self.width), dtype=self.np.float32)
        for row, (tokens, seen) in enumerate(zip(ids, mask, strict=True)):
            kept = tokens[seen.astype(bool)]
            found[row, seen.astype(bool)] = self._feed([int(t) for t in kept], fresh=True, every=True)
        return found

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """n next tokens by argmax, with the cache."""
        logits = self.step(list(ids), True)
        told: list[int] = []
        for _ in range(n):
            told.append(int(logits.argmax()))
            logits = self.step(told[-1:], False)
        return told

    def step(self, ids: list[int], fresh: bool) -> Any:
        """Logits after the last of `ids`."""
        return self._feed(ids, fresh, every=False)[-1]

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, without those that begin or end a sequence."""
        data = text.encode()
        room = (self.lib.llama_token * (len(data) + 16))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), room, len(room), False, False)
        if count < 0:
            raise ValueError("llama.cpp cannot tokenize a text")
        return list(room[:count])

    def chat(self, messages: list[dict[str, str]]) -> list[int] | None:
        """Ids of the prompt that the server builds with the file's own template."""
        template = self._text("tokenizer.chat_template")
        if not template:
            return None
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        ends = [self._piece(self.lib.llama_vocab_eos(self.vocab)), self._piece(self.lib.llama_vocab_bos(self.vocab))]
        prompt = Jinja2ChatFormatter(template=template, eos_token=ends[0], bos_token=ends[1])(messages=messages).prompt
        data = prompt.encode()
        room = (self.lib.llama_token * (len(data) + 16))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), room, len(room), False, True)
        return list(room[:count])

    def _context(self) -> Any:
        lib = self.lib
        chosen = lib.llama_context_default_params()
        longest = int(lib.llama_model_n_ctx_train(self.model))
        chosen.n_ctx = min(CONTEXT, longest)
        chosen.n_batch = chosen.n_ubatch = min(BATCH, longest)
        chosen.n_threads = chosen.n_threads_batch = self.threads
        if self.kind == "encoder":
            chosen.embeddings = True
            chosen.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        context = lib.llama_init_from_model(self.model, chosen)
        if not context:
            raise ValueError("llama.cpp cannot make a context for this model")
        return context

    def _feed(self, ids: list[int], fresh: bool, every: bool) -> Any:
        """Outputs (n, V or D) of `ids`, or of the last of them."""
        lib = self.lib
        if fresh:
            self.position = 0
            if self.kind == "decoder":
                lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        rows = []
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            rows.append(self._decode(part, every, start + len(part) == len(ids)))
        return self.np.concatenate(rows)

    def _decode(self, ids: list[int], every: bool, last: bool) -> Any:
        lib, np = self.lib, self.np
        batch = lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for n, token in enumerate(ids):
                batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.seq_id[n][0] = token, self.position + n, 1, 0
                batch.logits[n] = every or (last and n == len(ids) - 1)
            run = lib.llama_decode if self.kind == "decoder" else lib.llama_encode
            if code := run(self.context, batch):
                raise ValueError(f"llama.cpp failed with code {code} on {len(ids)} tokens at {self.position}")
            wanted = [n for n in range(len(ids)) if batch.logits[n]]
        finally:
            lib.llama_batch_free(batch)
        self.position += len(ids)
        get = lib.llama_get_logits_ith if self.kind == "decoder" else lib.llama_get_embeddings_ith
        rows = [np.ctypeslib.as_array(get(self.context, n), shape=(self.width,)).copy() for n in wanted]
        return np.stack(rows) if rows else np.zeros((0, self.width), dtype=np.float32)

    def _text(self, key: str) -> str:
        size = self.lib.llama_model_meta_val_str(self.model, key.encode(), None, 0)
        if size < 0:
            return ""
        room = ctypes.create_string_buffer(size + 1)
        self.lib.llama_model_meta_val_str(self.model, key.encode(), room, size + 1)
        return room.value.decode()

    def _piece(self, token: int) -> str:
        if token < 0:
            return ""
        room = ctypes.create_string_buffer(256)
        count = self.lib.llama_token_to_piece(self.vocab, token, room, 256, 0, True)
        return room.raw[: max(0, count)].decode(errors="replace")


def server(folder: str, port: int) -> list[str]:
    """What starts an OpenAI server, of vectors where the export says how they are pooled."""
    card = Path(folder) / "export.json"
    said = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    embeds = ["--embedding", "true"] if "pooling" in said.get("facts", {}) else []
    told = ["--model", str(Path(folder) / FILE), "--host", "127.0.0.1", "--port", str(port)]
    return ["-m", "llama_cpp.server", *told, "--n_ctx", str(CONTEXT), *embeds]


def probe(threads: int) -> list[dict[str, Any]]:
    """ggml's own products on this machine."""
    import llama_cpp

    from export.runtimes import _ggml_probe

    return _ggml_probe.probe(Path(str(llama_cpp.__file__)).parent / "lib", threads)


RUNTIME = Runtime(
    open=Session,
    formats={
        "gguf": Arithmetic(
            coded="int8-32",
            dense="bfloat16",
            why="inputs of quantized layers are rounded to int8 in blocks of 32, those of 16-bit layers to 16 bits",
        )
    },
    distribution="llama-cpp-python",
    packages=("llama-cpp-python[server]==0.3.36",),
    server=server,
    probe=probe,
    notes=("built from source with this machine's instructions: needs a C++ compiler, 5 to 20 minutes",),
)
