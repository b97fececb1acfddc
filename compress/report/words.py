"""Figures and foreign text as people read them: units, intervals, and strings made harmless to show.

MB is 10^6 bytes and GB 10^9, here and everywhere we print; records keep exact bytes.
"""

from __future__ import annotations

import math
import re
import unicodedata

from compress.core.types import Measurement

MISSING = "–"
TIMES = "×"
BYTES_NOTE = "MB = 10^6 bytes; exact byte counts are in record.json"
# Direction overrides reorder what is read; the byte-order mark and language tags are invisible.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_BREAKS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_ESCAPE_SEQUENCE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[@-Z\\\\-_])")

LABELS = {
    "bytes": "size",
    "bits_per_weight": "bits per weight",
    "perplexity": "perplexity",
    "perplexity_ratio": "perplexity ratio",
    "kl": "KL to the original",
    "top1_agreement": "top-1 agreement",
    "hidden_cosine": "hidden-state cosine",
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "entity_f1": "entity F1",
    "exact_match": "exact match",
    "f1": "F1",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
    "mrr": "mean reciprocal rank",
    "spearman": "Spearman",
    "rouge_l": "ROUGE-L",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "bleu": "BLEU",
    "wer": "word error rate",
    "cer": "character error rate",
    "prefill_tokens_per_s": "prefill",
    "decode_tokens_per_s": "decode",
    "latency_ms": "latency",
    "peak_rss_bytes": "peak memory",
    "seconds": "time",
}
HIGHER_IS_BETTER = frozenset(
    {
        "top1_agreement",
        "hidden_cosine",
        "accuracy",
        "f1_macro",
        "entity_f1",
        "exact_match",
        "f1",
        "recall_at_1",
        "recall_at_10",
        "mrr",
        "spearman",
        "rouge_l",
        "rouge_1",
        "rouge_2",
        "bleu",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
    }
)


def clean(text: object, limit: int = 4000, lines: bool = False) -> str:
    """`text` without anything that a terminal or a browser would obey.

    Terminal escape sequences, control characters, direction overrides and lone surrogates go; line breaks
    stay only when `lines` is true, as `\\n`. More than `limit` characters: the end is cut, marked with `…`.
    """
    raw = _BREAKS.sub("\n", _ESCAPE_SEQUENCE.sub("", str(text)[: 4 * limit]))
    kept = []
    for char in raw:
        if char in "\n\t":
            kept.append(char if lines else " ")
        elif unicodedata.category(char) == "Cs":
            kept.append("\ufffd")
        elif unicodedata.category(char) != "Cc" and char not in _REORDERING and not 0xE0000 <= ord(char) <= 0xE007F:
            kept.append(char)
    result = "".join(kept)
    return result if len(result) <= limit else result[: limit - 1] + "…"


def short(name: object, limit: int = 28) -> str:
    """What a chart or a narrow table calls a subject: the last part of its path, the middle cut when long."""
    return middle_cut(_tail(name, 1), limit)


def distinct(names: list[str], limit: int) -> dict[str, str]:
    """A short form of each name, unlike all others: as much of the path as that takes, else a number."""
    shorts: dict[str, str] = {}
    for depth in range(1, 5):
        shorts = {name: middle_cut(_tail(name, depth), limit) for name in names}
        if len(set(shorts.values())) == len(shorts):
            return shorts
    marked = {name: f" {i}" for i, name in enumerate(shorts, 1)}
    return {name: middle_cut(_tail(name, 1), limit - len(marked[name])) + marked[name] for name in shorts}


def middle_cut(text: str, limit: int) -> str:
    """`text` in at most `limit` characters, the middle replaced by `…`; names mostly differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def _tail(name: object, depth: int) -> str:
    """The last `depth` parts of a path."""
    text = clean(name).strip()
    parts = [part for part in re.split(r"[/\\]", text) if part]
    return "/".join(parts[-depth:]) or text or "unnamed"


def finite(value: float | None) -> bool:
    """Whether there is a number to show: not None, NaN or infinite."""
    return value is not None and math.isfinite(value)


def size(n_bytes: float | None) -> str:
    """`128.4 MB`, in powers of 1000."""
    if n_bytes is None or not math.isfinite(n_bytes):
        return MISSING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(n_bytes) >= 0.99995 * scale:
            scaled = n_bytes / scale
            return f"{scaled:.2f} {unit}" if scaled < 10 else f"{scaled:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float | None) -> str:
    """`2 min 31 s`, `4.2 s`, `37 ms`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant figures without exponent where people read it so, thousands separated."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 15:
        return f"{value:.{max(digits - 2, 0)}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def number_of(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(fraction: float | None) -> str:
    """A share of one as `84.3 %`; small ones keep two significant figures."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    value = 100 * fraction
    if value != 0 and abs(value) < 0.095:
        return f"{value:.2g} %"
    return f"{value:.2f} %" if abs(value) < 9.995 else f"{value:.1f} %"


def count(value: object) -> str:
    """`135 M`, `1.24 B`: parameters and tokens."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f}"


def plural(n: int, noun: str) -> str:
    """`1 layer`, `210 layers`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def amount(name: str, value: float | None, unit: str = "") -> str:
    """The value of the measurement called `name`, with the unit a person expects."""
    if value is None or math.isnan(value):
        return MISSING
    if unit in ("bytes", "byte", "B") or name.endswith("bytes"):
        return size(value)
    if unit in ("s", "seconds"):
        return duration(value)
    if unit in ("%", "percent"):
        return percent(value / 100)
    if unit in ("fraction", "share") or name == "top1_agreement":
        return percent(value)
    if name == "bits_per_weight":
        return f"{value:.2f}"
    if name in ("hidden_cosine", "perplexity_ratio"):
        return f"{value:.4f}" if name == "hidden_cosine" else number(value)
    if name == "kl":
        return number(value, 3)
    return number(value)


def score(name: str, value: float) -> str:
    """A score of validation rows: perplexity as a number, all others as shares."""
    return amount(name, value, "" if name == "perplexity" else "fraction")


def unit_of(measurement: Measurement) -> str:
    """The unit to print after `amount`, empty where `amount` already carries it or there is none."""
    if measurement.unit in (
        "bytes",
        "byte",
        "B",
        "s",
        "seconds",
        "%",
        "percent",
        "fraction",
        "share",
        "ratio",
        "1",
    ):
        return ""
    if measurement.name in (
        "bits_per_weight",
        "perplexity",
        "perplexity_ratio",
        "top1_agreement",
        "hidden_cosine",
    ):
        return ""
    return clean(measurement.unit, 24)


def shown(measurement: Measurement | None) -> str:
    """Value and unit, or a dash."""
    if measurement is None:
        return MISSING
    value = amount(measurement.name, measurement.median, measurement.unit)
    unit = unit_of(measurement)
    return f"{value} {unit}" if unit and value != MISSING else value


def interval(measurement: Measurement | None) -> str:
    """The 95 % interval as `[19.80, 21.50]`, or nothing."""
    if measurement is None or not finite(measurement.low) or not finite(measurement.high):
        return ""
    low, high = (amount(measurement.name, x, measurement.unit) for x in (measurement.low, measurement.high))
    tail = low.rpartition(" ")[2]
    if not tail[:1].isdigit() and high.endswith(f" {tail}"):  # one unit is enough, and a share's is beside it
        low = low[: -len(tail) - 1]
        high = high.removesuffix(" %")
    return f"[{low}, {high}]"


def change(measurement: Measurement) -> str:
    """A difference with its interval: `-1.67 points [-5.00, 0.00]` of shares, `-0.0012 [-0.0031, 0.0004]` of others."""
    share = measurement.unit == "fraction"
    scale, digits = (100, 2) if share else (1, 4)
    low, high = measurement.low, measurement.high
    said = f"{scale * measurement.median:+.{digits}f}{' points' if share else ''}"
    if low is None or high is None or not (finite(low) and finite(high)):
        return said
    return f"{said} [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"


def plain_value(value: object, limit: int = 400) -> str:
    """Any value of a card (environment, data, recipe) on one line: flags as yes and no, lists joined."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 1000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else MISSING
    if isinstance(value, dict):
        if value and all(isinstance(item, bool) for item in value.values()):
            flags = [str(key) for key, item in value.items() if item and key != "known"]
            return clean(", ".join(flags) or "none", limit)
        return clean(", ".join(f"{key} {plain_value(item, 80)}" for key, item in value.items()), limit)
    if isinstance(value, list | tuple):
        return clean(", ".join(plain_value(item, 80) for item in value), limit)
    return clean(value, limit) or MISSING
