"""What `run_bench` is asked to measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compress.core.types import TokenSet
from compress.measure.subject import WorkerSettings

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BenchSettings:
    """What to measure. The first subject is the reference: KL, agreement and bits per weight refer to it.

    data: held-out ids, made with the reference's tokenizer; needed for quality only. prompt_tokens,
    decode_tokens: of a timed run. repeats: timed runs a round, after `warmup` untimed ones; rounds: fresh
    processes a subject. threads 0: the physical cores. dtype: of the computation, not of the files.
    """

    subjects: tuple[str, ...]
    data: TokenSet | None = None
    prompt_tokens: int = 256
    decode_tokens: int = 32
    repeats: int = 5
    warmup: int = 1
    rounds: int = 2
    threads: int = 0
    dtype: str = "float32"
    seed: int = 0
    allow_pickle: bool = False
    trust_remote_code: bool = False
    quality: bool = True
    latency: bool = True

    @property
    def worker(self) -> WorkerSettings:
        """What a worker process needs to know of them."""
        return WorkerSettings(self.dtype, self.threads, self.allow_pickle, self.trust_remote_code)
