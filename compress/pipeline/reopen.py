"""A tuned model as its folder gives it back: opened from disk, compared with the one that was trained, scored.

What is reported is what was saved: the scores come from the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core import device
from compress.core.crf import read_crf
from compress.core.errors import ModelError
from compress.core.numerics.bootstrap import bootstrap
from compress.core.task import Context, Task
from compress.core.types import Measurement
from compress.core.writing import WritingTask
from compress.train.score import Part, outputs_of, score
from compress.train.tuning import Tuning

PROBES = 16  # features whose outputs are compared
TOLERANCE = 1e-3  # of the largest output: merging adds in another order than the adapter does


@dataclass(frozen=True)
class Opener:
    """How to open the folder of a tuned model. base: the folder it was tuned from. head: settings of its head."""

    task: Task
    tuning: Tuning
    base: Path
    head: dict[str, Any]
    trust_remote_code: bool = False

    def openers(self) -> list[str]:
        """peft where the folder holds an adapter, transformers where it holds a model; the last one is scored."""
        return ["peft"] * self.tuning.adapter + ["transformers"] * (not self.tuning.adapter or self.tuning.merges)

    def open(self, name: str, out: Path) -> Any:
        """The model in `out` in float32, by one of `openers`. Raises ModelError when a weight is not there."""
        if name == "peft":
            import peft

            base, _ = self._plain(self.base, self.head)
            return self.tuning.reopened(
                peft.PeftModel.from_pretrained(base, out / "adapter" if self.tuning.merges else out)
            )
        model, info = self._plain(out, {})
        if missing := sorted(info["missing_keys"]):
            raise ModelError(f"{out} was written without {missing[0]}; this is a fault of the program, report it")
        return model

    def _plain(self, folder: Path, head: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        import transformers

        found: tuple[Any, dict[str, Any]] = getattr(transformers, self.task.auto).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=self.trust_remote_code,
            dtype=torch.float32,
            output_loading_info=True,
            **head,
        )
        return found


def probe(model: Any, task: Task, context: Context, part: Part) -> list[Tensor]:
    """Outputs of the first features, to be compared with those of the model that the files give."""
    return outputs_of(model, task, context, part.features[:PROBES])


def examined(
    opener: Opener, out: Path, context: Context, part: Part, trained: Sequence[Tensor]
) -> tuple[list[Measurement], list[dict[str, Any]]]:
    """The figures of the model in `out` on `part`, and lines for the record: does it answer as the trained one did?

    trained: `probe` of the model in memory. Everything in the folder is compared, one at a time.
    """
    task = opener.task
    crf = read_crf(out, context.labels) if task.words else None
    context = replace(context, decode=crf.decode if crf is not None else None)
    lines = []
    for name in opener.openers():
        model = opener.open(name, out)
        found = probe(model, task, context, part)
        difference, tolerance = _apart(task, found, trained, context)
        lines.append({
            "check": f"outputs of {'the adapter on its base' if name == 'peft' else 'from_pretrained'} in float32",
            "runtime": f"{name} {device.package_version(name)}",
            "difference": difference,
            "tolerance": tolerance,
            "texts": len(found),
            "passed": difference <= tolerance,
        })  # fmt: skip
    return measure(model, task, context, part, str(out)), lines


def _apart(task: Task, found: Sequence[Tensor], trained: Sequence[Tensor], context: Context) -> tuple[float, float]:
    """The largest difference of outputs, and how large it may be. Texts that were written are equal or are not."""
    if isinstance(task, WritingTask):
        texts = [task.answers(outputs, (), context) for outputs in (found, trained)]
        return float(sum(a != b for a, b in zip(*texts, strict=True))), 0.0
    difference = max(float((a - b).abs().max()) for a, b in zip(found, trained, strict=True))
    return difference, TOLERANCE * max(1.0, *(float(output.abs().max()) for output in trained))


def measure(model: Any, task: Task, context: Context, part: Part, subject: str) -> list[Measurement]:
    """The task's figures on `part` with 95 % intervals over its rows; those that are not a number are left out."""
    counts = score(model, task, context, part)
    values, bounds = bootstrap(counts, task.figures, 0)
    detail = {"split": "test", "interval": "bootstrap over rows, 95 %"}
    found = [
        Measurement(subject, metric.name, metric.unit, float(value), *bound, n=len(part.rows), detail=dict(detail))
        for metric, value, bound in zip(task.metrics, values, bounds, strict=True)
    ]
    return [m for m in found if m.median == m.median]
