"""Records as real runs write them, made up: a 30-block decoder, hostile, Chinese, bench and sparse ones."""

from __future__ import annotations

import dataclasses
import math
import random

from compress.core.types import BlockResult, Generation, LayerResult, Measurement, RunRecord

OUT = "SmolLM2-135M-Instruct-int4"
SHAPES = {
    "q_proj": (576, 576),
    "k_proj": (192, 576),
    "v_proj": (192, 576),
    "o_proj": (576, 576),
    "gate_proj": (1536, 576),
    "up_proj": (1536, 576),
    "down_proj": (576, 1536),
}
HARD = {
    "q_proj": 0.8,
    "k_proj": 0.7,
    "v_proj": 1.6,
    "o_proj": 2.2,
    "gate_proj": 1.0,
    "up_proj": 1.1,
    "down_proj": 2.9,
}
ATTACKS = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=2>",
    "<!--<script>",
    "]]>-->",
    '" onmouseover="window.pwned=3" x="',
    "' style='position:fixed;width:9999px",
    "[bold red]rich[/bold red] [link=http://evil.invalid]x[/link]",
    "[/]",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b]8;;http://evil.invalid\x1b\\link\x1b]8;;\x1b\\",
    "a\u2028b\u2029c\u202egnp.exe\u2066",
    "\x00\x07\x08\x7f\x9b31m",
    "\ud800 lone",
    "<a href='javascript:window.pwned=4'>click</a><b>bold</b><br>",
    "%{customdata[0]}<extra></extra> $\\alpha$ ${title} {0} %s",
    "&lt;script&gt; &amp;amp; &#60;",
    "W" * 5000,
    "wide 模型 " * 40,
    "",
)


def quantize_record(blocks: int = 30, bits: int = 4) -> RunRecord:
    """`compress quantize demo` as it should end: 30 blocks of 7 layers, everything measured."""
    layers = tuple(_layer(block, role, bits) for block in range(blocks) for role in SHAPES)
    table = 49152 * 576
    embedding = LayerResult(
        "model.embed_tokens",
        -1,
        "embedding",
        (49152, 576),
        "bfloat16",
        "keep",
        "embeddings are kept unless --embeddings int8",
        4 * table,
        2 * table,
        0.0,
        0.0,
        0.01,
    )
    before = sum(layer.bytes_before for layer in layers) + 4 * table + 61 * 576 * 4
    after = sum(layer.bytes_after for layer in layers) + 2 * table + 61 * 576 * 2 + 48_000
    parameters = before // 4
    return RunRecord(
        command="quantize",
        model={
            "name": "SmolLM2-135M-Instruct",
            "architecture": "LlamaForCausalLM",
            "parameters": parameters,
            "bytes": before,
            "blocks": blocks,
            "dtype": "float32",
            "tied": True,
        },
        artifact=OUT,
        recipe={
            "model": "demo",
            "bits": bits,
            "group_size": "auto",
            "method": "gptq",
            "seed": 0,
            "options": {"damp": 0.01},
        },
        plan={"predicted_bytes": after, "layers": {}},
        data={
            "calibration": {
                "source": "BBC news articles, built in",
                "sequences": 64,
                "tokens": 32768,
                "digest": "9f2c41d0a7" * 6,
            },
            "held_out": {
                "source": "BBC news articles, built in",
                "documents": 16,
                "tokens": 8192,
                "digest": "04be77aa31" * 6,
            },
        },
        layers=(embedding, *layers),
        blocks=tuple(_block(b) for b in range(blocks)),
        measurements=(
            *_quality("original", before, parameters, None, 0),
            *_quality(OUT, after, parameters, 1.083, 0.127),
        ),
        verified=(
            {
                "runtime": "transformers",
                "version": "5.23.0",
                "passed": True,
                "max_logit_difference": 2.1e-05,
                "greedy_tokens": 64,
                "greedy_tokens_equal": 64,
            },
        ),
        generations=(
            Generation(
                "Explain in one sentence why the sky is blue.",
                {
                    "original": "The sky looks blue because air scatters short waves more than long ones.",
                    OUT: "The sky looks blue because air scatters blue light more than red.",
                },
            ),
            Generation(
                "Write a haiku about compression.",
                {
                    "original": "Quiet weights grow small,\n  fewer bits hold all they knew —\nit comes.",
                    OUT: "Quiet weights made small,\n  fewer bits to say the same —\nstill it comes.",
                },
            ),
        ),
        notes=(
            "The demo model's gains are folded into its linears: its weights leave their 4-bit grid.",
            "group_size auto chose 64: 128 does not divide 576.",
        ),
        stages={
            "open": 1.84,
            "calibrate": 61.2,
            "quantize": 214.9,
            "measure": 38.4,
            "write": 3.1,
            "verify": 22.7,
        },
        environment={
            "python": "3.11.2",
            "platform": "Linux x86_64",
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "threads": 2,
            "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0", "compressed-tensors": "0.20.0"},
            "isa": {"avx2": True, "avx512f": False, "avx512_vnni": False},
            "id": "c41f09",
        },
        reproduce="compress quantize demo --bits 4 --method gptq --group-size 64 --samples 64 --seed 0",
    )


def _layer(block: int, role: str, bits: int) -> LayerResult:
    rows, cols = SHAPES[role]
    noise = random.Random(f"{block}-{role}")
    wide = role == "down_proj" and block in (0, 1, 29)
    used = 8 if wide else bits
    stored = rows * cols * used // 8 + rows * cols // 64 * 2 + rows * cols // 64 * used // 8
    error = 0.0042 * HARD[role] * (1 + 0.06 * block) * noise.uniform(0.7, 1.4) * (0.02 if wide else 1) * 4 ** (4 - bits)
    home = "self_attn" if role[0] in "qkvo" else "mlp"
    return LayerResult(
        layer=f"model.layers.{block}.{home}.{role}",
        block=block,
        role=role,
        shape=(rows, cols),
        scheme=f"int{used}-g64-asym",
        method="gptq",
        reason="8 bits: outliers above 40 times the median"
        if wide
        else f"--bits {bits}, the largest group that divides {cols}",
        bytes_before=rows * cols * 4,
        bytes_after=stored,
        output_error=error,
        weight_error=error * 1.9,
        seconds=0.4 + noise.random(),
        n_tokens=32768,
        moved=0.04 if role in ("o_proj", "down_proj") else 0.0,
        fallback="damping was raised to 0.1 of the mean diagonal: the hessian was singular"
        if (block, role) == (3, "o_proj")
        else None,
    )


def _block(block: int) -> BlockResult:
    error = 0.0011 * 1.11**block
    return BlockResult(block, f"model.layers.{block}", error, 1 - error / 2, 7.1 + block % 3)


def _quality(subject: str, n_bytes: float, parameters: int, ratio: float | None, kl: float) -> tuple[Measurement, ...]:
    found = [
        Measurement(subject, "bytes", "bytes", n_bytes),
        Measurement(subject, "bits_per_weight", "bits", 8 * n_bytes / parameters),
        Measurement(
            subject,
            "perplexity",
            "",
            19.031 * (ratio or 1),
            17.2 * (ratio or 1),
            21.4 * (ratio or 1),
            16,
            {"tokens": 8192},
        ),
    ]
    if ratio is not None:
        found += [
            Measurement(subject, "perplexity_ratio", "", ratio, ratio - 0.012, ratio + 0.013, 16),
            Measurement(subject, "kl", "nats/token", kl, kl * 0.93, kl * 1.08, 16),
            Measurement(subject, "top1_agreement", "fraction", 0.843, 0.835, 0.851, 16),
        ]
    return tuple(found)


def _speed(subject: str, prefill: float, decode: float, rss: float) -> tuple[Measurement, ...]:
    return (
        Measurement(subject, "prefill_tokens_per_s", "tokens/s", prefill, prefill * 0.95, prefill * 1.04, 5),
        Measurement(subject, "decode_tokens_per_s", "tokens/s", decode, decode * 0.97, decode * 1.03, 5),
        Measurement(
            subject,
            "latency_ms",
            "ms",
            1000 / decode,
            970 / decode,
            1030 / decode,
            5,
            {"p95": 1200 / decode, "threads": 2},
        ),
        Measurement(subject, "peak_rss_bytes", "bytes", rss, None, None, 1),
    )


def bench_record() -> RunRecord:
    """`compress bench demo a b c`: four subjects, quality and speed."""
    parameters = 134_515_008
    rows = (
        ("original", 538.1e6, None, 0.0, 402.0, 31.2, 1.31e9),
        ("out/SmolLM2-135M-Instruct-int8", 198.4e6, 1.004, 0.006, 371.0, 38.8, 1.05e9),
        ("out/SmolLM2-135M-Instruct-int4", 118.9e6, 1.083, 0.127, 350.0, 33.1, 0.97e9),
        ("out/SmolLM2-135M-Instruct-int3", 105.2e6, 1.467, 0.472, 344.0, 32.0, 0.96e9),
    )
    measured = tuple(
        m
        for name, n_bytes, ratio, kl, prefill, decode, rss in rows
        for m in (*_quality(name, n_bytes, parameters, ratio, kl), *_speed(name, prefill, decode, rss))
    )
    full = quantize_record(2)
    return RunRecord(
        command="bench",
        model={**full.model, "parameters": parameters},
        artifact=None,
        measurements=measured,
        data={"held_out": full.data["held_out"]},
        environment=full.environment,
        notes=("Load average was 1.7 while latency was measured.",),
        stages={"quality": 71.0, "latency": 45.0},
        reproduce=" ".join(["compress bench demo", *(row[0] for row in rows[1:])]),
    )


def encoder_record() -> RunRecord:
    """An encoder: no perplexity, no generations, only hidden_cosine; one layer without statistics."""
    full = quantize_record(6)
    out = "MiniLM-int8"
    layers = tuple(dataclasses.replace(x, output_error=math.nan) if x.role == "v_proj" else x for x in full.layers)
    sizes = (Measurement("original", "bytes", "bytes", 90.9e6), Measurement(out, "bytes", "bytes", 34.6e6))
    cosine = Measurement(out, "hidden_cosine", "", 0.9862, 0.9851, 0.9874, 16)
    return dataclasses.replace(
        full,
        model={
            "name": "MiniLM-L6-v2",
            "architecture": "BertModel",
            "parameters": 22_713_216,
            "bytes": 90_900_000,
        },
        artifact=out,
        layers=layers,
        measurements=(*sizes, cosine),
        generations=(),
    )


def tune_record() -> RunRecord:
    """A classifier tuned for three epochs; the second one was kept."""
    lines: list[dict[str, float]] = []
    for epoch, accuracy in enumerate((0.81, 0.93, 0.92), 1):
        lines += [{"step": 10 * epoch - 5, "loss": 2.0 / epoch}, {"step": 10 * epoch, "loss": 1.5 / epoch}]
        lines.append({"step": 10 * epoch, "epoch": epoch, "accuracy": accuracy, "f1_macro": accuracy - 0.02})
    figures = (("accuracy", 0.925, 0.90, 0.95), ("f1_macro", 0.91, 0.88, 0.94))
    return RunRecord(
        command="tune",
        model={
            "name": "MiniLM-L6-v2",
            "architecture": "BertForSequenceClassification",
            "parameters": 22_714_757,
            "trained": 302_597,
        },
        artifact="topics",
        recipe={"model": "minilm", "data": "topics.csv"},
        data={"task": "text-classification", "labels": {"sport": 500, "tech": 400}},
        measurements=tuple(Measurement("topics", name, "fraction", *values, 400) for name, *values in figures),
        training={"lines": lines, "best": 20, "stopped_early": False},
    )


def empty_record() -> RunRecord:
    """The least a record can hold."""
    return RunRecord(command="quantize", model={}, artifact=None)


def chinese_record() -> RunRecord:
    """Chinese names, text and paths."""
    full = quantize_record(4)
    out = "输出/通义千问-四位"
    return dataclasses.replace(
        full,
        model={**full.model, "name": "通义千问-零点六亿"},
        artifact=out,
        measurements=tuple(
            dataclasses.replace(m, subject=m.subject if m.subject == "original" else out) for m in full.measurements
        ),
        generations=(
            Generation(
                "请用一句话解释天空为什么是蓝色的。",
                {"original": "因为空气散射短波光。" * 4, out: "空气把蓝光散射得多。" * 4},
            ),
        ),
        notes=("分词器与词表大小一致。",),
    )


def hostile_record(attacks: tuple[str, ...] = ATTACKS) -> RunRecord:
    """Every string that can come from outside is an attack; `attacks` may be as many harmless ones."""
    full = quantize_record(3)
    pick = [*attacks, *attacks]
    n = len(attacks)
    layers = tuple(
        dataclasses.replace(
            x,
            layer=pick[i % n] + f".{i}",
            role=pick[i % 7] + str(i % 7),
            reason=pick[(i + 3) % n],
            fallback=pick[(i + 5) % n] or "none",
            scheme=pick[(i + 1) % n],
            method=pick[(i + 2) % n],
        )
        for i, x in enumerate(full.layers)
    )
    out = attacks[0] + attacks[8]
    return dataclasses.replace(
        full,
        model={
            "name": attacks[0] + attacks[11],
            "architecture": attacks[1],
            attacks[2] + "k": attacks[3],
            "bytes": 123456789,
        },
        artifact=out,
        layers=layers,
        blocks=tuple(dataclasses.replace(b, name=pick[i]) for i, b in enumerate(full.blocks)),
        recipe={"model": attacks[4], attacks[5] + "k": attacks[6]},
        plan={"layers": {attacks[0]: {"reason": attacks[1]}}},
        data={
            "calibration": {"source": attacks[9], attacks[12] + "k": list(attacks)},
            "labels": {attacks[0]: 7, attacks[3]: attacks[4], attacks[11]: math.nan, attacks[5]: 2},
        },
        measurements=(
            *(
                dataclasses.replace(
                    m,
                    subject=m.subject if m.subject == "original" else out,
                    unit=attacks[12] if m.name == "kl" else m.unit,
                )
                for m in full.measurements
            ),
            Measurement(attacks[13], "perplexity", "", 20.0, 19.0, 21.0),
            Measurement(attacks[13], "bytes", "bytes", 2e8),
        ),
        verified=({"runtime": attacks[0], "passed": False, attacks[1] + "k": attacks[2]},),
        generations=tuple(Generation(a, {"original": a, attacks[0]: pick[i + 1]}) for i, a in enumerate(attacks)),
        training={
            "lines": [
                {"step": 1, "loss": 2.0},
                {"step": 2, "loss": attacks[0]},
                {"step": 3, "loss": 1.0},
                attacks[1],
                {"step": 3, "epoch": 1.0, attacks[2] + "m": 0.5, attacks[11] + "m": math.nan},
                {"step": 6, "epoch": 2.0, attacks[2] + "m": 0.6},
                {"step": attacks[3], "epoch": 3, "x": 1},
            ],
            "best": 6,
        },
        notes=attacks,
        stages={attacks[0] + "s": 1.0, attacks[6] + "s": 2.0},
        environment={attacks[0] + "e": attacks[1], "versions": {attacks[12] + "v": attacks[0]}},
        reproduce=attacks[0],
    )
