"""GPTQModel on the CPU: GPTQ checkpoints of 2, 3, 4 and 8 bits, symmetric ones and `gptq_v2`, by its own loader
and its `torch` kernel, in its own environment.

Its other CPU kernels are compiled when a model is first opened, for minutes on two cores, and round scales to bfloat16;
this one takes float16 as the file has it. What it asks for is torch 2.14.1, a CUDA build of 6 GB, and runs with the one
that we have: it is installed alone. Source: gptqmodel/nn_modules/qlinear/torch.py, requirements.txt, __init__.py
(GPTQMODEL_CPU_WORKERS: with one worker, its default on two cores, it opens nothing) of version 7.7.0.
TORCHDYNAMO_DISABLE:
that kernel too is compiled, by g++, for each shape it meets; the same function runs as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from export.runtimes._kind import Arithmetic, Runtime


class Session:
    """One checkpoint, open."""

    kind = "decoder"

    def __init__(self, folder: str, settings: Mapping[str, Any]) -> None:
        """Open it. Raises what GPTQModel raises."""
        import torch
        from gptqmodel import BACKEND, GPTQModel

        torch.set_num_threads(int(settings["threads"]))
        self.torch = torch
        self.opened = GPTQModel.load(
            folder,
            device="cpu",
            backend=BACKEND.GPTQ_TORCH,
            dtype=torch.float16,
            trust_remote_code=bool(settings.get("trust_remote_code")),
        )
        self.model, self.tokenizer = self.opened.model, self.opened.tokenizer
        self.vocabulary = int(self.model.config.get_text_config().vocab_size)
        self._cache: Any = None

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """Logits (B, L, V), float32."""
        with self.torch.inference_mode():
            output = self.model(input_ids=self.torch.from_numpy(inputs["input_ids"]))
        return output.logits.float().numpy()

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """n next tokens by argmax, with the cache."""
        told = [int(self.step(ids, True).argmax())]
        while len(told) < n:
            told.append(int(self.step(told[-1:], False).argmax()))
        return told

    def step(self, ids: list[int], fresh: bool) -> Any:
        """Logits (V,) after feeding ids."""
        with self.torch.inference_mode():
            past = {} if fresh else {"past_key_values": self._cache}
            output = self.model(input_ids=self.torch.tensor([ids]), use_cache=True, **past)
        self._cache = output.past_key_values
        return output.logits[0, -1].float().numpy()

    def tokenize(self, text: str) -> list[int]:
        """Ids by the tokenizer that it opens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def chat(self, messages: list[dict[str, str]]) -> list[int] | None:
        """Ids of the prompt by the checkpoint's own template."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        return self.tokenize(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def answer(self, asked: list[dict[str, str]] | str, n: int) -> tuple[list[int], str]:
        """What its `generate` says, greedy, whatever generation_config.json asks for."""
        if isinstance(asked, str):
            inputs = self.tokenizer(asked, return_tensors="pt")
        else:
            inputs = self.tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        ids = inputs["input_ids"]
        made = self.opened.generate(
            input_ids=ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=n, do_sample=False, num_beams=1,
            repetition_penalty=1.0,
        )  # fmt: skip
        return made[0][ids.shape[1] :].tolist(), f"gptqmodel {version('gptqmodel')}, GPTQModel.generate"


def _refuses(config: Mapping[str, Any]) -> str | None:
    """It is asked for text here; and zero - 1 it believes its own writer only (models/loader.py: "only supported if
    produced by gptqmodel version >= 0.9.0", which `meta.quantizer` says)."""
    name = (config.get("architectures") or [""])[0]
    if not name.endswith(("ForCausalLM", "LMHeadModel")):
        return f"{name or 'a model without a name'} writes no text"
    said = config.get("quantization_config") or {}
    if (
        not said.get("sym")
        and said.get("checkpoint_format") == "gptq"
        and not (said.get("meta") or {}).get("quantizer")
    ):
        return (
            "it opens zero points stored as zero - 1 only where GPTQModel wrote them; "
            "export with --option gptq.checkpoint_format=gptq_v2"
        )
    return None


RUNTIME = Runtime(
    open=Session,
    formats={"gptq": Arithmetic(dtype="float16", why="GPTQModel's torch kernel computes in float16")},
    distribution="gptqmodel",
    packages=(
        "torch==2.13.0",
        "transformers==5.23.0",
        "accelerate==1.15.0",
        "datasets==5.2.0",
        "defuser==0.0.28",
        "device-smi==0.5.7",
        "dill==0.4.1",
        "logbar==0.4.15",
        "ninja==1.13.2",
        "numpy==2.4.6",
        "pillow==13.0.0",
        "protobuf==7.36.2",
        "pyarrow==26.0.1",
        "pypcre==0.6.4",
        "requests==2.34.2",
        "threadpoolctl==3.8.0",
        "tokenicer==0.0.14",
        "torchao==0.18.0",
    ),
    alone=("gptqmodel==7.7.0",),
    environment={"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"},
    client=True,
    refuses=_refuses,
    notes=("2, 3, 4 and 8 bits, symmetric or not, by its torch kernel in float16",),
)
