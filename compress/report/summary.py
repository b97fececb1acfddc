"""What a record says, worked out once for terminal and page: headline, roles, worst layers, next steps."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from compress.core.types import LayerResult, Measurement, RunRecord
from compress.report import words

ORIGINAL = "original"
QUALITY = ("bytes", "bits_per_weight", "perplexity", "kl", "top1_agreement", "hidden_cosine")
SPEED = ("prefill_tokens_per_s", "decode_tokens_per_s", "latency_ms", "peak_rss_bytes")
HEADLINE = ("bytes", "bits_per_weight", "perplexity", "kl", "top1_agreement", "hidden_cosine", *SPEED)
CHANGE = "_change"  # after the name of a score: the compressed model's minus the original's, paired by row
PARTS = ("Embedding", "Attention", "MLP", "Head", "Other layers")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query", "key", "value")
_MLP = ("gate", "up", "down", "fc", "mlp", "ffn", "wi", "wo")


@dataclass(frozen=True)
class Figure:
    """One headline number. `before` is empty where only the result has one; `good` is a verdict, or None."""

    label: str
    before: str
    value: str
    unit: str
    note: str
    good: bool | None = None


@dataclass(frozen=True)
class RoleRow:
    """All layers of one role: schemes (most used first), stored bits, bytes, median and worst error."""

    role: str
    layers: int
    schemes: tuple[str, ...]
    bits: float
    bytes_before: int
    bytes_after: int
    error: float
    worst: float
    fallbacks: int


def subjects(record: RunRecord) -> list[str]:
    """The subjects in order of appearance, the original first."""
    names = list(dict.fromkeys(m.subject for m in record.measurements))
    return sorted(names, key=lambda name: name != ORIGINAL)


def short_names(record: RunRecord, limit: int) -> dict[str, str]:
    """What charts and narrow tables call each subject; no two the same."""
    return words.distinct(subjects(record), limit)


def reference(record: RunRecord) -> str:
    """The subject that others are compared with: `original`, or the first one."""
    names = subjects(record)
    return names[0] if names else ORIGINAL


def target(record: RunRecord) -> str | None:
    """The compressed subject of the headline: the artifact, or the only one besides the reference."""
    others = [name for name in subjects(record) if name != reference(record)]
    if record.artifact in others:
        return record.artifact
    return others[0] if others and (len(others) == 1 or record.command == "quantize") else None


def product(record: RunRecord) -> str | None:
    """What the title says the model became: the artifact, or the one subject that it is compared with."""
    return record.artifact or target(record)


def find(record: RunRecord, subject: str | None, name: str) -> Measurement | None:
    """The measurement `name` of `subject`, None when there is none or it is not a number."""
    for m in record.measurements:
        if m.subject == subject and m.name == name and not math.isnan(m.median):
            return m
    return None


def names_present(record: RunRecord, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that some subject has."""
    present = {m.name for m in record.measurements if not math.isnan(m.median)}
    return [name for name in names if name in present]


def other_names(record: RunRecord) -> list[str]:
    """Measurement names that no standard table shows (task metrics, say)."""
    known = {*HEADLINE, "perplexity_ratio", "seconds"}
    names = dict.fromkeys(m.name for m in record.measurements if m.name not in known)
    return [name for name in names if not name.endswith(CHANGE)]


def total_bytes(record: RunRecord) -> tuple[float | None, float | None]:
    """Bytes before and after: measured, else from the model card and the layers, else None."""
    before, after = find(record, reference(record), "bytes"), find(record, target(record), "bytes")
    first = before.median if before else words.number_of(record.model.get("bytes"))
    second = after.median if after else None
    if second is None and record.layers and first is not None:
        second = first - sum(layer.bytes_before - layer.bytes_after for layer in record.layers)
    return first, second if second is None or second >= 0 else None


def headline(record: RunRecord) -> list[Figure]:
    """The numbers to read first; every one that the record has, none that it has not."""
    figures = []
    before, after = total_bytes(record)
    if before is not None and after:
        ratio = before / after
        note = f"{ratio:.2f}{words.TIMES} smaller" if ratio >= 1 else f"{1 / ratio:.2f}{words.TIMES} larger"
        figures.append(Figure("Size", words.size(before), words.size(after), "", note))
    elif before is not None:
        figures.append(Figure("Size", "", words.size(before), "", ""))
    for name in (*other_names(record), *HEADLINE[1:]):
        figure = _figure(record, name)
        if figure:
            figures.append(figure)
    if record.verified:
        good = all(passed(v) is not False for v in record.verified)
        names = "; ".join(dict.fromkeys(verifier(v) for v in record.verified))
        verdict = "agrees" if good else "DISAGREES"
        figures.append(Figure("Verified", "", verdict, "", names, good))
    return figures


def _figure(record: RunRecord, name: str) -> Figure | None:
    """The headline figure of one measurement, original and compressed side by side."""
    ours, base = find(record, target(record), name), find(record, reference(record), name)
    if ours is None and (base is None or len(subjects(record)) > 1):
        return None
    shown = ours or base
    assert shown is not None
    notes = [words.interval(shown)]
    against_itself = name in ("kl", "top1_agreement", "hidden_cosine")
    before = "" if ours is None or base is None or against_itself else words.amount(name, base.median, base.unit)
    if name == "perplexity" and (ratio := find(record, target(record), "perplexity_ratio")):
        notes = [f"{words.TIMES}{words.amount('perplexity_ratio', ratio.median)} {words.interval(ratio)}".strip()]
    elif moved := find(record, target(record), f"{name}{CHANGE}"):
        notes.append(words.change(moved))
    elif name in SPEED and ours and base and base.median > 0 and ours.median > 0:
        notes.append(change(name, base, ours))
    label = words.LABELS.get(name, name)
    value = words.amount(name, shown.median, shown.unit)
    return Figure(label[0].upper() + label[1:], before, value, words.unit_of(shown), ", ".join(filter(None, notes)))


def basis(record: RunRecord) -> str:
    """What the intervals rest on, as a sentence; empty when there are none."""
    names = (*other_names(record), *QUALITY[2:])
    judged = [m for m in record.measurements if m.name in names and words.finite(m.low) and m.n > 1]
    if not judged:
        has_any = any(words.finite(m.low) for m in record.measurements)
        return "Brackets are 95 % intervals." if has_any else ""
    tokens = judged[0].detail.get("tokens")
    what = "held-out row" if record.data.get("task") else "held-out document"
    more = f", {words.plural(tokens, 'token')}" if isinstance(tokens, int) else ""
    least, most = min(m.n for m in judged), max(m.n for m in judged)  # models write for more rows than they are forced
    over = words.plural(most, what) if least == most else f"{least} to {words.plural(most, what)}"
    return f"Brackets are 95 % intervals over {over}{more}."


def best(record: RunRecord) -> list[Figure]:
    """The winners among several subjects: smallest, closest, fastest; the reference does not compete."""
    figures = []
    others = subjects(record)[1:]
    names = short_names(record, 28)
    for name, title in (
        ("bytes", "Smallest"),
        ("perplexity", "Lowest perplexity"),
        ("kl", "Closest to the original"),
        ("decode_tokens_per_s", "Fastest decode"),
        ("latency_ms", "Lowest latency"),
        ("peak_rss_bytes", "Least memory"),
    ):
        found = [m for subject in others if (m := find(record, subject, name))]
        if found:
            sign = -1 if name in words.HIGHER_IS_BETTER else 1
            winner = min(found, key=lambda m: sign * m.median)
            value = f"{words.shown(winner)} {words.interval(winner)}".strip()
            figures.append(Figure(title, "", names[winner.subject], "", value))
    return figures


def change(name: str, before: Measurement, after: Measurement) -> str:
    """`1.73× faster`, `2.10× less`, or that the 95 % intervals overlap and nothing is claimed."""
    if _overlap(before, after):
        return "no clear difference"
    if name == "peak_rss_bytes":
        ratio, better, worse = before.median / after.median, "less", "more"
    else:
        ratio = after.median / before.median
        ratio = ratio if name in words.HIGHER_IS_BETTER else 1 / ratio
        better, worse = "faster", "slower"
    if abs(ratio - 1) < 0.005:
        return "the same"
    return f"{ratio:.2f}{words.TIMES} {better}" if ratio > 1 else f"{1 / ratio:.2f}{words.TIMES} {worse}"


def _overlap(a: Measurement, b: Measurement) -> bool:
    """Whether two 95 % intervals share a point; without intervals nothing is known to overlap."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low <= b.high and b.low <= a.high


def verdict(record: RunRecord) -> str:
    """One sentence for the top of the page; empty when nothing was measured."""
    before, after = total_bytes(record)
    ratio = find(record, target(record), "perplexity_ratio")
    ours, base = (find(record, name, "perplexity") for name in (target(record), reference(record)))
    said = []
    if before and after:
        said.append(f"{words.size(before)} became {words.size(after)}")
    if ours and base:
        growth = (ratio.median if ratio else ours.median / base.median) - 1
        moved = f"{abs(100 * growth):.1f} % {'up' if growth >= 0 else 'down'}"
        if ratio and ratio.low is not None and ratio.high is not None and ratio.low <= 1 <= ratio.high:
            moved += ", which may be chance"
        figures = f"{words.number(base.median)} to {words.number(ours.median)}"
        said.append(f"perplexity on held-out text went from {figures} ({moved})")
    if not said and len(subjects(record)) > 1:
        said.append(f"{len(subjects(record))} models side by side")
    sentence = "; ".join(said)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def rest(record: RunRecord) -> str:
    """What the file holds besides the layers of the record; an embedding that was kept is not among those."""
    listed = any(layer.role == "embedding" for layer in record.layers)
    return "Everything else" if listed else "Embedding and all else"


def part(role: str) -> str:
    """Which of PARTS a role belongs to."""
    if role == "embedding":
        return "Embedding"
    if role == "lm_head":
        return "Head"
    bare = role.removeprefix("cross_")
    if bare in _ATTENTION:
        return "Attention"
    return "MLP" if bare.startswith(_MLP) else "Other layers"


def bits_per_weight(layer: LayerResult) -> float:
    """Stored bits per weight of one layer, NaN for an empty one."""
    weights = layer.shape[0] * layer.shape[1]
    return 8 * layer.bytes_after / weights if weights else math.nan


def error_of(layer: LayerResult) -> float:
    """Relative output error, or weight error where there were no statistics; NaN when neither is known."""
    return layer.weight_error if math.isnan(layer.output_error) else layer.output_error


def error_name(layers: tuple[LayerResult, ...]) -> str:
    """What `error_of` shows for these layers."""
    measured = [layer for layer in layers if layer.scheme not in ("bfloat16", "float16", "float32")] or list(layers)
    return "weight error" if all(math.isnan(layer.output_error) for layer in measured) else "output error"


def roles(record: RunRecord) -> list[RoleRow]:
    """The layers gathered by role, in order of first appearance."""
    groups: dict[str, list[LayerResult]] = {}
    for layer in record.layers:
        groups.setdefault(layer.role, []).append(layer)
    return [_role(role, layers) for role, layers in groups.items()]


def _role(role: str, layers: list[LayerResult]) -> RoleRow:
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    after = sum(layer.bytes_after for layer in layers)
    errors = sorted(error for layer in layers if not math.isnan(error := error_of(layer)))
    return RoleRow(
        role=role,
        layers=len(layers),
        schemes=tuple(name for name, _ in Counter(scheme_of(layer) for layer in layers).most_common()),
        bits=8 * after / weights if weights else math.nan,
        bytes_before=sum(layer.bytes_before for layer in layers),
        bytes_after=after,
        error=errors[len(errors) // 2] if errors else math.nan,
        worst=errors[-1] if errors else math.nan,
        fallbacks=sum(layer.fallback is not None for layer in layers),
    )


def worst(record: RunRecord, n: int = 5) -> list[LayerResult]:
    """The `n` layers with the largest error, largest first."""
    judged = [layer for layer in record.layers if not math.isnan(error_of(layer)) and error_of(layer) > 0]
    return sorted(judged, key=lambda layer: (-error_of(layer), layer.layer))[:n]


def why(layer: LayerResult) -> str:
    """The fallback sentence if there is one, else the plan's reason."""
    return layer.fallback or layer.reason


def scheme_of(layer: LayerResult) -> str:
    """The scheme of the weight, and of the input where that is rounded too."""
    return f"{layer.scheme} {layer.activation}".strip()


def in_float(record: RunRecord) -> list[tuple[str, str]]:
    """What else the model computes that stays in float, and why."""
    found = record.plan.get("in_float")
    return [(str(what), str(why)) for what, why in found.items()] if isinstance(found, dict) else []


def reasons(record: RunRecord) -> list[tuple[str, str, str, int, str]]:
    """Plan decisions gathered: scheme, method, reason, number of layers, one of them."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for layer in record.layers:
        groups.setdefault((scheme_of(layer), layer.method, layer.reason), []).append(layer.layer)
    if not groups:
        for name, entry in _planned(record.plan).items():
            groups.setdefault(entry, []).append(name)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [(*key, len(names), names[0]) for key, names in ordered]


def _planned(plan: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Scheme, method and reason by layer out of a plan as JSON; anything unreadable is left out."""
    layers = plan.get("layers")
    found = {}
    for name, entry in layers.items() if isinstance(layers, dict) else ():
        if isinstance(entry, dict):
            scheme = entry.get("scheme", "")
            text = f"{scheme.get('kind')}{scheme.get('bits')}" if isinstance(scheme, dict) else str(scheme)
            found[str(name)] = (text, str(entry.get("method", "")), str(entry.get("reason", "")))
    return found


def verifier(entry: dict[str, Any]) -> str:
    """What judged a `verified` entry: the runtime, else the check that was made."""
    return words.clean(entry.get("runtime") or entry.get("format") or entry.get("check") or "its runtime", 60)


def passed(entry: dict[str, Any]) -> bool | None:
    """The verdict of a `verified` entry, None when it holds none."""
    for key in ("passed", "ok", "agrees"):
        if isinstance(entry.get(key), bool):
            return bool(entry[key])
    return None


def details(entry: dict[str, Any]) -> str:
    """The rest of a `verified` entry: the check, then `name value` pairs."""
    check = words.clean(entry.get("check") or "", 200)
    pairs = [check] if check and check != verifier(entry) else []
    for key, value in entry.items():
        if key in ("runtime", "format", "check", "passed", "ok", "agrees", "path"):
            continue
        if isinstance(value, float):
            shown = words.percent(value) if key == "top1_agreement" else words.number(value, 3)
        elif isinstance(value, str | int):
            shown = words.plain_value(value)
        else:
            continue
        pairs.append(f"{words.clean(key, 40).replace('_', ' ')} {shown}")
    return ", ".join(pairs)
