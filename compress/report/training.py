"""What a record says of training: epochs, losses, how often each label occurs, how much of the model was trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compress.core.types import RunRecord
from compress.report import words


@dataclass(frozen=True)
class Epoch:
    """One pass over the training rows: mean of the logged losses, validation scores, whether the model is of it."""

    epoch: float
    loss: float
    scores: dict[str, float]
    kept: bool


def epochs(record: RunRecord) -> list[Epoch]:
    """The epochs of a run that trained, oldest first; lines of an edited record that hold no numbers are left out."""
    found: list[Epoch] = []
    losses: list[float] = []
    for line in record.training.get("lines") or []:
        pairs = line.items() if isinstance(line, dict) else ()
        numbers = {str(name): v for name, value in pairs if (v := words.number_of(value)) is not None}
        if "loss" in numbers:
            losses.append(numbers["loss"])
            continue
        scores = {name: value for name, value in numbers.items() if name not in ("step", "epoch")}
        if scores and {"step", "epoch"} <= numbers.keys():
            loss = sum(losses) / len(losses) if losses else math.nan
            kept = numbers["step"] == record.training.get("best")
            found.append(Epoch(numbers["epoch"], loss, scores, kept))
            losses = []
    return found


def balance(record: RunRecord) -> list[tuple[str, int, float]]:
    """(label, how often, share of all) of labelled rows; [] where an edited record holds no numbers."""
    labels = record.data.get("labels")
    pairs = [(str(k), words.number_of(v)) for k, v in labels.items()] if isinstance(labels, dict) else []
    counts = [(name, int(count)) for name, count in pairs if count is not None and count >= 0]
    total = sum(count for _, count in counts)
    return [(name, count, count / total) for name, count in counts] if total else []


def trained(record: RunRecord) -> str:
    """`1.3 % trained`; empty where nothing was."""
    part, whole = words.number_of(record.model.get("trained")), words.number_of(record.model.get("parameters"))
    return f"{words.percent(part / whole)} trained" if part and whole else ""


def losses(record: RunRecord) -> list[tuple[int, float]]:
    """(step, loss) of a run that trained, oldest first."""
    lines = [line for line in record.training.get("lines") or [] if isinstance(line, dict)]
    pairs = [(words.number_of(line.get("step")), words.number_of(line.get("loss"))) for line in lines]
    return [(int(step), loss) for step, loss in pairs if step is not None and loss is not None]
