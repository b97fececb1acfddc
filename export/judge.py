"""Does a runtime agree with the compressed model in memory? Lines for verify.json, each with its bound and where it is
from.

A bound is what the runtime's own arithmetic may do. It is measured, not guessed: the reference runs the probe once more
with that rounding (`reference.rounded`), and a runtime may differ by MARGIN times as much, since two right
implementations of one rounding differ about as much from each other as from no rounding (a value on the other side of a
tie moves what follows). Where the arithmetic is float32 there is nothing to measure and FLOAT bounds it.

Where the artifact itself rounds inputs to int8, one code can move more than all rounding does: dynamic grids (max |x| /
127.5) put the largest value of every token on a tie where it is negative, -127.5, so that the last bit of a sum decides
between two codes, and what follows is drawn anew. Therefore the reference also runs DRAWS times with other last bits
(`Reference.shaken`), and a right runtime is one more draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from export.runtimes._kind import Arithmetic

FLOAT = 2e-4  # of the largest logit: float32 sums of a few thousand terms in another order, through all blocks
FLOAT_KL = 1e-6  # nats a token
MARGIN = 2.0
ACTING = 2.0  # the same where the artifact rounds inputs and others do it in other operations: at most 1.4 was seen
DRAWS = 8
SHAKEN = 1.5
"""Of the largest of DRAWS. Of 60 draws none was above 1.3 of the largest of the first eight (largest difference; tiny
bert-classifier, bart and whisper, dynamic and static): bert-classifier .0179 against .0137, where leaving out all
rounding moves .0055 and onnxruntime differed by .0129."""
GREEDY = 32
NEXT = 10  # tokens of each position that a right runtime may confuse with the best
LIKELY = 200  # tokens that a server is thought to choose from where it parts from the reference

Line = dict[str, Any]


@dataclass(frozen=True)
class Bounds:
    """What may differ.

    largest: of a logit. gap: of how much one likely token is preferred to another. kl: nats a token. why: a sentence.
    plain: what the arithmetic does by itself.
    """

    largest: float
    gap: float
    kl: float
    why: str
    plain: dict[str, float]


def bounds(
    exact: Sequence[Tensor],
    rounded: Sequence[Tensor] | None,
    arithmetic: Arithmetic,
    shaken: Sequence[Sequence[Tensor]] = (),
) -> Bounds:
    """Bounds from the reference's outputs, each (B, ..., V), exact and with the runtime's rounding (None: float32).

    shaken: the exact ones again, drawn with other last bits; of models with int8 inputs.
    """
    floor = FLOAT * max(1.0, *(float(output.abs().max()) for output in exact))
    if rounded is None:
        return Bounds(floor, 2 * floor, FLOAT_KL, arithmetic.why, {})
    plain = _moved(exact, rounded)
    margin = ACTING if arithmetic.integers else MARGIN
    limits = {key: margin * value for key, value in plain.items()}
    why = f"{arithmetic.why}; {margin:g} times what that alone does to the reference on the same tokens"
    for drawn in shaken:
        moved = _moved(exact, drawn)
        limits = {key: max(limit, SHAKEN * moved[key]) for key, limit in limits.items()}
        plain["last_bits"] = max(plain.get("last_bits", 0.0), moved["difference"])
    if shaken:
        why += f", or {SHAKEN:g} times what other last bits before rounding do, the most of {len(shaken)} draws"
    return Bounds(floor + limits["difference"], 2 * floor + limits["gap"], FLOAT_KL + limits["kl"], why, plain)


def _moved(exact: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float]:
    """How far outputs are from the exact ones, in each way that is bounded."""
    return {
        "difference": max(_largest(a, b) for a, b in zip(exact, found, strict=True)),
        "gap": max(_preference(a, b) for a, b in zip(exact, found, strict=True)),
        "kl": divergence(exact, found),
    }


def distributions(exact: Sequence[Tensor], found: Sequence[Tensor], allowed: Bounds, what: str) -> list[Line]:
    """Lines on logits: KL, the largest difference, the most likely token.

    A token that the runtime prefers to the reference's own must be one that the allowed difference explains.
    """
    if (shapes := _shapes(exact, found)) is not None:
        return [{"check": what, "passed": False, "said": shapes}]
    if not all(bool(torch.isfinite(output).all()) for output in found):
        return [{"check": what, "passed": False, "said": "the runtime gives NaN or infinity"}]
    kl = divergence(exact, found)
    largest = max(_largest(a, b) for a, b in zip(exact, found, strict=True))
    count = agreed = 0
    gap = 0.0
    for a, b in zip(exact, found, strict=True):
        best, theirs = a.argmax(-1), b.argmax(-1)
        lost = a.gather(-1, best[..., None]) - a.gather(-1, theirs[..., None])
        gap = max(gap, float(lost.max()))
        count, agreed = count + best.numel(), agreed + int((best == theirs).sum())
    return [
        {
            "check": f"{what}: divergence of the distributions",
            "kl": kl,
            "tolerance": allowed.kl,
            "passed": kl <= allowed.kl,
        },
        {
            "check": f"{what}: largest difference",
            "difference": largest,
            "tolerance": allowed.largest,
            "passed": largest <= allowed.largest,
        },
        {
            "check": f"{what}: most likely token",
            "top1_agreement": agreed / count,
            "positions": count,
            "gap": gap,
            "tolerance": allowed.gap,
            "passed": gap <= allowed.gap,
        },
    ]


def values(exact: Sequence[Tensor], found: Sequence[Tensor], allowed: Bounds, what: str) -> list[Line]:
    """A line on outputs that are no distributions over a vocabulary."""
    if (shapes := _shapes(exact, found)) is not None:
        return [{"check": what, "passed": False, "said": shapes}]
    largest = max(_largest(a, b) for a, b in zip(exact, found, strict=True))
    finite = all(bool(torch.isfinite(output).all()) for output in found)
    return [
        {
            "check": f"{what}: largest difference",
            "difference": largest if finite else None,
            "tolerance": allowed.largest,
            "passed": finite and largest <= allowed.largest,
        }
    ]


def greedy(expected: Sequence[int], logits: Tensor, found: Sequence[int], allowed: Bounds) -> Line:
    """Do both write the same? Where they part, the reference's preference must be within what may differ.

    logits: (n, V), those that `expected` was chosen from.
    """
    same = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(expected))
    line: Line = {"check": "greedy tokens", "equal": same, "of": len(expected), "passed": True}
    if same == len(expected) and len(found) >= len(expected):
        return line
    if same >= len(found):
        return {**line, "passed": False, "said": f"the runtime stopped after {len(found)} tokens"}
    gap = float(logits[same, expected[same]] - logits[same, found[same]])
    said = f"they part at token {same + 1}, where the reference prefers its own by {gap:.3g}"
    return {**line, "gap": gap, "tolerance": allowed.gap, "passed": gap <= allowed.gap, "said": said}


def served(
    text: str, expected: Sequence[int], logits: Tensor, decode: Callable[[Sequence[int]], str], allowed: Bounds
) -> Line:
    """Does a server's answer say what the reference's tokens say? Where they part, as in `greedy`.

    expected: up to the first end token, that included; logits (n, V) they were chosen from. decode: ids -> text,
    special tokens left out. The server's token is told from its text: the likeliest one by which the text can go on.
    """
    plain = text.rstrip("\ufffd")  # a character of several tokens, cut in two
    whole = decode(expected).rstrip("\ufffd")
    line: Line = {"check": "served answer", "of": len(expected), "passed": True}
    if plain == whole:
        return {**line, "equal": len(expected)}
    same = max(n for n in range(len(expected)) if plain.startswith(decode(expected[:n]).rstrip("\ufffd")))
    line |= {"equal": same, "passed": False}
    told = list(expected[:same])
    for other in logits[same].topk(min(LIKELY, logits.shape[1])).indices.tolist():
        goes_on = decode([*told, other]).rstrip("\ufffd")
        ends = goes_on == decode(told) and goes_on == plain
        if other != expected[same] and (ends or (plain.startswith(goes_on) and len(goes_on) > len(decode(told)))):
            gap = float(logits[same, expected[same]] - logits[same, other])
            said = f"it parts at token {same + 1}, where the reference prefers its own by {gap:.3g}"
            bound = allowed.gap
            return {**line, "gap": gap, "tolerance": bound, "passed": gap <= bound, "said": said}
    return {**line, "said": f"it answers {text[:60]!r}, the reference {whole[:60]!r}"}


def served_ids(
    found: Sequence[int], expected: Sequence[int], logits: Tensor, ends: Collection[int], allowed: Bounds
) -> Line:
    """Does a client write the reference's tokens? Where they part, as in `greedy`; going on and ending are tokens too.

    found: ids that the client gave, its end token kept or left out. expected: up to the first of `ends`, that included;
    logits (n, V) they were chosen from.
    """
    theirs, their_end = _until(found, ends)
    mine, end = _until(expected, ends)
    same = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    line: Line = {"check": "served answer", "equal": same, "of": len(expected), "passed": True}
    if same == len(mine) == len(theirs) and (end is None or their_end in (None, end)):
        return {**line, "equal": len(expected)}
    if same == len(expected):
        return {**line, "passed": False, "said": f"it goes on for {len(theirs) - same} tokens more than were asked for"}
    other, how = (theirs[same], "it parts") if same < len(theirs) else (their_end, "it ends")
    if other is None:  # the end token is left out: the likeliest of them
        other = max(ends, key=lambda token: float(logits[same, token]), default=None)
    if other is None:
        return {**line, "passed": False, "said": f"it stopped after {same} tokens"}
    gap = float(logits[same, expected[same]] - logits[same, other])
    if not math.isfinite(gap):
        return {**line, "passed": False, "said": f"at token {same + 1} it says {other}, which is never said there"}
    said = f"{how} at token {same + 1}, where the reference prefers its own by {gap:.3g}"
    return {**line, "gap": gap, "tolerance": allowed.gap, "passed": gap <= allowed.gap, "said": said}


def _until(ids: Sequence[int], ends: Collection[int]) -> tuple[list[int], int | None]:
    """ids before the first end token, and that token."""
    stop = next((n for n, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:stop]), ids[stop] if stop < len(ids) else None


def labels(exact: Sequence[Tensor], found: Sequence[Sequence[Sequence[float]]], allowed: Bounds, what: str) -> Line:
    """Does a client give the reference's class to each token?

    exact: logits (L, C) of each text. found: [position, class, probability] of the tokens that the client tells of. A
    class that the reference does not prefer must be one that the allowed gap explains.
    """
    count = equal = 0
    gap = off = 0.0
    for logits, told in zip(exact, found, strict=True):
        shares = logits.softmax(-1)
        for position, label, score in told:
            row, column = int(position), int(label)
            lost = float(logits[row].max() - logits[row, column])
            count, equal, gap = count + 1, equal + int(lost == 0), max(gap, lost)
            off = max(off, abs(float(shares[row, column]) - score))
    limit = min(1.0, allowed.gap)  # of a probability: at most a quarter of what the logits move
    right = bool(count) and gap <= allowed.gap and off <= limit
    line: Line = {"check": what, "equal": equal, "of": count, "gap": gap, "tolerance": allowed.gap, "passed": right}
    if not right:
        line["said"] = f"{equal} of {count} tokens have the reference's class, probabilities are off by {off:.3g}"
    return line


def same_ids(expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]] | None, what: str) -> Line | None:
    """Are ids equal? None where the runtime makes none."""
    if found is None:
        return None
    wrong = [n for n, (a, b) in enumerate(zip(expected, found, strict=True)) if list(a) != list(b)]
    line: Line = {"check": what, "texts": len(expected), "equal": len(expected) - len(wrong), "passed": not wrong}
    if wrong:
        a, b = list(expected[wrong[0]]), list(found[wrong[0]])
        at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        line["said"] = f"text {wrong[0] + 1} parts at token {at + 1}: {a[at : at + 4]} against {b[at : at + 4]}"
    return line


def divergence(exact: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Mean KL of `found` from `exact` over all positions, nats; both (..., V) logits. In float64."""
    total, count = 0.0, 0
    for a, b in zip(exact, found, strict=True):
        for rows_a, rows_b in zip(*(torch.split(x.flatten(0, -2), 64) for x in (a, b)), strict=True):
            p, q = rows_a.double().log_softmax(-1), rows_b.double().log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
            count += len(p)
    return max(0.0, total / count)


def _preference(a: Tensor, b: Tensor) -> float:
    """The largest change, from `a` to `b`, of how much a row's best is preferred to one of the next ones."""
    top = a.topk(min(NEXT, a.shape[-1]), -1).indices
    before, after = a.gather(-1, top), b.gather(-1, top)
    return float(((before[..., :1] - before) - (after[..., :1] - after)).abs().max())


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _shapes(exact: Sequence[Tensor], found: Sequence[Tensor]) -> str | None:
    for a, b in zip(exact, found, strict=True):
        if a.shape != b.shape:
            return f"the runtime gives {tuple(b.shape)}, the reference {tuple(a.shape)}"
    return None


def passed(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every line agrees; no line at all proves nothing."""
    return bool(lines) and all(line["passed"] for line in lines)
