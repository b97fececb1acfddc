"""The loss of a training run, step by step, and the validation score after every epoch."""

from __future__ import annotations

from compress.core.types import RunRecord
from compress.report import training, words
from compress.report.chartkit import ACCENT, Chart, Json, axis, color, label, layout, sentence, sign, symbol


def loss_chart(record: RunRecord) -> Chart | None:
    """Training loss against steps."""
    points = training.losses(record)
    if len(points) < 2:
        return None
    x, y = [step for step, _ in points], [loss for _, loss in points]
    trace: Json = {
        "type": "scatter",
        "mode": "lines+markers" if len(x) < 60 else "lines",
        "x": x,
        "y": y,
        "line": {"color": ACCENT},
        "hovertemplate": "step %{x}: %{y:.4f}<extra></extra>",
    }
    said = f"the loss went from {words.number(y[0])} to {words.number(y[-1])} in {words.plural(x[-1], 'step')}"
    figure = {"data": [trace], "layout": layout(axis("step"), axis("loss", {"rangemode": "tozero"}))}
    return Chart("loss", "training", "Loss", sentence(said), figure, 260)


def score_chart(record: RunRecord) -> Chart | None:
    """Scores of validation rows after every epoch; the kept epoch in the sentence."""
    rows = training.epochs(record)
    if len(rows) < 2:
        return None
    names = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    share = "perplexity" not in names
    scale, unit = (100, " %") if share else (1, "")
    shown = {name: label(words.LABELS.get(name, name)) for name in names}
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": shown[name],
            "x": [row.epoch for row in rows],
            "y": [scale * row.scores[name] for row in rows],
            "line": {"color": color(n)},
            "marker": {"symbol": symbol(n), "color": color(n)},
            "hovertemplate": f"epoch %{{x}}: %{{y:.2f}}{unit}<extra></extra>",
        }
        for n, name in enumerate(names)
    ]
    kept = next((row for row in rows if row.kept), None)
    if kept is None or not names:
        return None
    score = words.score(names[0], kept.scores[names[0]])
    said = f"the model is that of epoch {kept.epoch:g}, with {shown[names[0]]} {score} on validation rows"
    figure = {"data": traces, "layout": layout(axis("epoch"), axis("%" if share else shown[names[0]]))}
    legend = tuple((words.LABELS.get(name, name), color(n), sign(n)) for n, name in enumerate(names))
    return Chart("scores", "training", "Validation scores", sentence(said), figure, 260, legend)
