"""Whether the calibration text is fit for the use: what it has, what it covers, how far it is from a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from compress.core.types import RunRecord
from compress.report import pieces, words

TITLE = "Is the calibration text fit?"


@dataclass(frozen=True)
class Row:
    """One figure and what it means."""

    name: str
    value: str
    note: str = ""


def rows(record: RunRecord) -> list[Row]:
    """What the record has of it; of models that read one text and write another, both."""
    fit = record.data.get("fit")
    if not isinstance(fit, Mapping) or not fit:
        return []
    source = words.clean((record.data.get("like") or {}).get("source") or "--like", 60)
    made = []
    for side, found in fit.items():
        before = "" if len(fit) == 1 else f"{words.clean(side, 20).capitalize()}: "
        made += [Row(before + row.name if before else row.name, row.value, row.note) for row in _side(found, source)]
    stable = record.sensitivity.get("stability") or {}
    if said := stable.get("said"):
        made.append(Row("More of it", "", words.clean(said.partition(":")[0], 200)))
    return made


def _side(found: Mapping[str, Any], source: str) -> list[Row]:
    made = [
        Row(
            "Calibration text",
            f"{found['tokens']:,} tokens",
            f"{words.plural(found['sequences'], 'sequence')}; {found['tokens_an_input']:.3g} tokens for each of "
            f"{found['width']:,} inputs of the widest layer",
        ),
        Row("Ids of the vocabulary", f"{found['ids']:,}", f"of {found['vocabulary']:,}"),
    ]
    if found["copies"]:
        made.append(Row("Copies", f"{found['copies']:,}", "sequences that are the same as another"))
    if found["heldout_covered"] is not None:
        made.append(Row("Held-out tokens covered", words.percent(found["heldout_covered"]), "by ids that occur in it"))
    length = f"{found['lengths'][0]:,}"
    made.append(Row("Its lengths", length, f"{_lengths(found['lengths'])}; the model takes {found['longest']:,}"))
    if "like_texts" not in found:
        return made
    apart = found["distance"] or {}
    own = f"; as much of its own text covers {words.percent(apart['covers_own'])}" if apart else ""
    unseen = ", ".join(repr(words.clean(name, 20)) for name in found["unseen"])
    texts = f"{words.plural(found['like_texts'], 'text')} of {source}"
    part = f"{words.percent(apart['covers'])} by a sample of {apart['tokens']:,} tokens{own}; " if apart else ""
    part += f"never seen: {unseen}" if unseen else ""
    made += [
        Row("Sample of the use", f"{found['like_tokens']:,} tokens", texts),
        Row("Its tokens covered", words.percent(found["like_covered"]), part),
        Row("Its lengths", f"{found['like_lengths'][0]:,}",
            f"{_lengths(found['like_lengths'])}; {words.percent(found['like_reached'])} of its tokens are where "
            "calibration has some too"),
    ]  # fmt: skip
    if found["like_shared"]:
        made.append(Row("Its texts in calibration", words.percent(found["like_shared"]), "word for word"))
    if apart:
        made.append(
            Row(
                "Distance to it",
                f"{apart['between']:.2f}",
                f"two halves of it {apart['own']:.2f}, of calibration text {apart['within']:.2f}; beyond that "
                f"{apart['excess']:.2f}: {words.clean(apart['kind'], 40)}",
            )
        )
    return made


def _lengths(found: Sequence[int]) -> str:
    """What follows the length that half of the texts have at most. found: that, that of nine of ten, the longest."""
    if found[0] == found[2]:
        return "tokens each"
    return f"tokens, half have more; nine of ten up to {found[1]:,}, the longest {found[2]:,}"


def table(record: RunRecord) -> tuple[str, Table] | None:
    """A title and the rows for the terminal; None where the record has none."""
    found = rows(record)
    if not found:
        return None
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(justify="right", no_wrap=True)
    made.add_column(style="dim")
    for row in found:
        made.add_row(Text(row.name), Text(row.value), Text(row.note))
    return TITLE, made


def html(record: RunRecord) -> str:
    """The rows for the page."""
    columns = [pieces.Column("figure"), pieces.Column("value", True), pieces.Column("what it means")]
    return pieces.table("Calibration text beside its use", columns, [[r.name, r.value, r.note] for r in rows(record)])
