"""Is the calibration text fit for the use? What is known of it before any work: figures for the card, and sentences.

Verdicts on distances go by `Distance.excess`, whose scale was measured on BBC news (python -m benchmarks calibration):
.01 for other articles, .21 to .26 for one section against all, .32 to .40 for another section, .54 for tweets, .55 for
technical prose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from calibrate import coverage
from calibrate.data import PreparedData
from compress.core.checkpoint import Checkpoint
from compress.core.opening import Opened
from compress.core.types import Structure
from compress.pipeline import inputs
from compress.pipeline.like import Sides, marked, read_like, sides_of
from compress.pipeline.task_text import TaskText
from compress.recipe import Recipe

NEAR, FAR = 0.15, 0.35
"""Excess distances below which text is of the same kind, and from which on it is of another."""
FEW_AN_INPUT = 4.0
"""Tokens for each input of a layer below which second moments miss directions: of n tokens the smallest eigenvalue of
what should be 1 is (1 - sqrt(I / n))^2, a quarter here (Marchenko and Pastur 1967)."""
FEW_TOKENS = 1000  # of a sample, below which a distance says little
COVERED, LEAST = 0.8, 0.75  # of --like and of held-out text: less is worth a sentence
LONGER = 4  # times: calibration sequences beside what nine of ten texts have


@dataclass(frozen=True)
class Use:
    """What the text is for. longest: tokens the model takes. width: inputs of its widest layer, share: of the tokens
    that it sees, and why not all, in a clause. vocabulary: ids. solves: whether codes or costs come from the text."""

    longest: int
    width: int
    vocabulary: int
    share: float = 1.0
    why: str = ""
    solves: bool = True


def use_of(checkpoint: Checkpoint, structure: Structure, text: TaskText | None, solves: bool) -> Use:
    """What a model asks of its calibration text. text: of a task, which has what is read and written apart."""
    experts = 1 + max((layer.expert for layer in structure.layers if layer.expert is not None), default=0)
    chosen = int(getattr(checkpoint.config, "num_experts_per_tok", None) or experts)
    shares = {layer.name: chosen / experts if layer.expert is not None else 1.0 for layer in structure.layers}
    widest = max(structure.layers, key=lambda layer: layer.shape[1] / shares[layer.name])
    rows = int(checkpoint.model.get_input_embeddings().weight.shape[0])
    share, why = shares[widest.name], ""
    if share < 1:
        why = f" (an expert sees {share:.0%} of them)"
    elif text is None and getattr(checkpoint.config, "is_encoder_decoder", False):
        share, why = 0.5, " (one half is read, one written)"
    heard = text is not None and text.task.hears  # its layers see sound, more than there are tokens
    longest = inputs.longest_sequence(checkpoint.config)
    return Use(longest, widest.shape[1], rows, share, why, solves and not heard)


def assessed(recipe: Recipe, opened: Opened, use: Use, data: PreparedData, text: TaskText | None) -> PreparedData:
    """`data` with a card that says how fit it is: `fit`, `like` where a sample was given, sentences among `warnings`.

    Raises DataError for a sample that cannot be read.
    """
    known, judged = _sides(data, text, True), _sides(data, text, False)
    like: Sides = {}
    card: dict[str, Any] = {}
    whole, said = True, []
    tokenizer: Any = text.context.tokenizer if text is not None else None
    if recipe.like is not None:
        tokenizer = tokenizer or inputs.load_tokenizer(opened.folder, recipe.trust_remote_code)
        like, read = read_like(recipe, text, tokenizer, use.vocabulary, use.longest)
        whole, said = read.whole, [f"--like: {note}" for note in read.notes]
        tokens = sum(len(ids) for texts in like.values() for ids in texts)
        card = {**read.card, "texts": len(next(iter(like.values()))), "tokens": tokens, "digest": marked(like)}
    fit = {}
    for side, sequences in known.items():
        found = _figures(sequences, judged.get(side, []), use)
        if like.get(side):
            found |= _compared(sequences, like[side], use, recipe.seed)
            found["unseen"] = [tokenizer.decode([number]) for number in found["unseen"]]
            found["whole"] = whole
        found["poor"] = sentences(found, use, recipe, "" if len(known) == 1 else f"{side}: ")
        said += found["poor"]
        fit[side] = found
    made = {**data.card, "fit": fit, "warnings": [*data.card.get("warnings", []), *said]}
    return replace(data, card=made | ({"like": card} if card else {}))


def _sides(data: PreparedData, text: TaskText | None, calibration: bool) -> Sides:
    if text is None:
        return {"text": list((data.calibration if calibration else data.heldout).sequences)}
    return sides_of(text.task, text.calibration if calibration else text.heldout)


def _figures(sequences: Sequence[Tensor], judged: Sequence[Tensor], use: Use) -> dict[str, Any]:
    """What can be said of calibration text by itself and beside held-out text of the same source."""
    counts = coverage.counts(sequences, use.vocabulary)
    tokens = int(counts.sum())
    return {
        "sequences": len(sequences),
        "tokens": tokens,
        "width": use.width,
        "tokens_an_input": tokens * use.share / use.width,
        "ids": int((counts > 0).sum()),
        "vocabulary": use.vocabulary,
        "copies": coverage.copies(sequences),
        "heldout_covered": coverage.covered(counts, coverage.counts(judged, use.vocabulary)) if judged else None,
        "longest": use.longest,
        "lengths": _quantiles(sequences),
    }


def _quantiles(sequences: Sequence[Tensor]) -> list[int]:
    """Lengths that half and nine of ten of the sequences do not exceed, and the longest."""
    lengths = sorted(map(len, sequences))
    return [int(np.quantile(lengths, at, method="inverted_cdf")) for at in (0.5, 0.9, 1.0)] if lengths else []


def _compared(sequences: Sequence[Tensor], like: Sequence[Tensor], use: Use, seed: int) -> dict[str, Any]:
    """Calibration text beside the sample; `unseen` as ids."""
    known, used = (coverage.counts(texts, use.vocabulary) for texts in (sequences, like))
    apart = coverage.distance(like, sequences, use.vocabulary, seed)
    return {
        "like_texts": len(like),
        "like_tokens": int(used.sum()),
        "like_lengths": _quantiles(like),
        "like_covered": coverage.covered(known, used),
        "unseen": coverage.missing(known, used, 5),
        "like_reached": coverage.reached([len(ids) for ids in sequences], [len(ids) for ids in like]),
        "like_shared": coverage.shared(sequences, like),
        "distance": None if apart is None else {**vars(apart), "excess": apart.excess, "kind": kind_of(apart.excess)},
    }


def kind_of(excess: float) -> str:
    """What an excess distance means."""
    return "the same kind of text" if excess < NEAR else "related text" if excess < FAR else "another kind of text"


def sentences(found: Mapping[str, Any], use: Use, recipe: Recipe, prefix: str) -> list[str]:
    """What is poor, each with its remedy. prefix: which side is spoken of."""
    said = []
    tokens, width = found["tokens"], found["width"]
    if use.solves and found["tokens_an_input"] < FEW_AN_INPUT:
        more = math.ceil(recipe.samples * FEW_AN_INPUT / max(found["tokens_an_input"], 1e-9))
        said.append(
            f"Calibration has {tokens:,} tokens{use.why}, {found['tokens_an_input']:.1f} for each of the {width:,} "
            f"inputs of the widest layer, and below {FEW_AN_INPUT:.0f} directions are missed; give --samples "
            f"{_round(more)}, or more text."
        )
    if 10 * found["copies"] > found["sequences"]:
        said.append(
            f"{found['copies']} of {found['sequences']} calibration sequences are copies of another; give more text."
        )
    if found["heldout_covered"] is not None and found["heldout_covered"] < LEAST:
        said.append(
            f"Calibration text has the tokens of only {found['heldout_covered']:.0%} of held-out text, which is of the "
            "same source; give more --samples."
        )
    if "like_texts" in found:
        said += [*_uncovered(found), *_lengths(found, use, recipe), *_distant(found)]
    return [prefix + sentence for sentence in said]


def _uncovered(found: Mapping[str, Any]) -> list[str]:
    apart, covered = found["distance"], found["like_covered"]
    if covered >= COVERED or (apart is not None and 1 - apart["covers"] < 2 * (1 - apart["covers_own"])):
        return []
    names = ", ".join(repr(name) for name in found["unseen"])
    return [
        f"{1 - covered:.0%} of the tokens of --like never occur in calibration text, like {names}; calibrate on text "
        "that has them."
    ]


def _lengths(found: Mapping[str, Any], use: Use, recipe: Recipe) -> list[str]:
    if not found["whole"]:
        return []
    (middle, most, _), reached, here = found["like_lengths"], found["like_reached"], found["lengths"]
    if reached < 0.9:
        wanted = min(use.longest, _round(most))
        remedy = f"; give --seq-len {wanted}" if wanted > recipe.seq_len else "; give longer texts"
        return [f"{1 - reached:.0%} of the tokens of --like are past position {here[2]:,}, where calibration sequences "
                f"end{remedy}."]  # fmt: skip
    if here[0] > LONGER * most:
        wanted = max(8, _round(most))
        samples = math.ceil(recipe.samples * recipe.seq_len / wanted)
        remedy = f"; give --seq-len {wanted} --samples {samples}" if wanted < recipe.seq_len else ""
        return [
            f"Calibration sequences have {here[0]:,} tokens, the texts of --like {middle:,} (half) to {most:,} (nine "
            f"of ten): what comes first in a text is rare in them{remedy}."
        ]
    return []


def _distant(found: Mapping[str, Any]) -> list[str]:
    apart: dict[str, Any] | None = found["distance"]
    if apart is None:
        return ["--like or the calibration text is a single text, and has no distance; give several."]
    said = []
    if found["like_shared"] > 0.5:
        said.append(
            f"{found['like_shared']:.0%} of the texts of --like are calibration text themselves: that the two are near "
            "tells nothing."
        )
    if apart["tokens"] < FEW_TOKENS:
        said.append(
            f"The distance to --like is that of samples of {apart['tokens']:,} tokens, which say little; give more."
        )
    if apart["excess"] >= FAR:
        said.append(
            f"Calibration text is far from --like: {figures_of(apart)}; calibrate on text like it, with --data."
        )
    return said


def figures_of(apart: Mapping[str, Any]) -> str:
    """A distance beside those of two samples of the same text."""
    between, own, within = (apart[name] for name in ("between", "own", "within"))
    return f"distance {between:.2f}, two halves of --like {own:.2f}, of calibration text {within:.2f}"


def _round(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()


def summary(card: Mapping[str, Any]) -> str:
    """One sentence of the whole card, to be said before the work."""
    parts = []
    for side, found in card["fit"].items():
        what = f"{found['sequences']:,} sequences, {found['tokens']:,} tokens"
        if found["heldout_covered"] is not None:
            what += f", which cover {found['heldout_covered']:.0%} of held-out text"
        if found.get("distance"):
            apart = found["distance"]
            what += f"; {figures_of(apart)}: {apart['kind']}"
        parts.append(what if side == "text" else f"{side} {what}")
    return f"Calibration: {' · '.join(parts)}."


def say(card: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    """Tell how fit the text is, before the work: the summary, and what is poor."""
    for sentence in (summary(card), *(sentence for found in card["fit"].values() for sentence in found["poor"])):
        tell(sentence)
