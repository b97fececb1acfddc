"""The sentence on more calibration text, from a journal made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.core.types import BlockRef, LayerRef, Sensitivity, Structure
from compress.pipeline import halves

SCHEMES = {"int2-g32-sym": 2.0, "int4-g32-sym": 4.0}
LAYERS = tuple(LayerRef(f"b.{n}.proj", f"b.{n}.proj.weight", (32, 32), n, "proj") for n in range(6))


class Lines(dict[str, list[dict[str, Any]]]):
    """A journal as far as it is read here."""

    def of(self, kind: str) -> list[dict[str, Any]]:
        return self.get(kind, [])


def ready(samples: int, sequences: int, rows: int = 0) -> Any:
    """A prepared run of six layers; with rows, of a task."""
    blocks = tuple(BlockRef(n, f"b.{n}", "b", n, (layer,)) for n, layer in enumerate(LAYERS))
    features = tuple(SimpleNamespace(row=n // 2) for n in range(2 * rows))
    return SimpleNamespace(
        structure=Structure("Model", blocks, None, None, False),
        recipe=SimpleNamespace(samples=samples, seed=0),
        data=SimpleNamespace(calibration=SimpleNamespace(sequences=range(sequences))),
        text=SimpleNamespace(calibration=features) if rows else None,
    )


def said(made: Any, noise: float, texts: int, **kept: Any) -> dict[str, Any]:
    """What is said of texts whose dots differ by noise."""
    draw = np.random.default_rng(0)
    names = [(layer.name, scheme) for layer in LAYERS for scheme in kept.get("schemes", SCHEMES)]
    dots = []
    for at, (layer, scheme) in enumerate(names):
        size = (1.0 + 0.1 * (at // len(SCHEMES))) * 2.0 ** -SCHEMES[scheme]
        dots.append([layer, scheme, (size * np.exp(noise * draw.normal(0, 1, texts))).tolist()])
    journal = Lines(scored=[{"dots": dots[:5], "unit": "nats", "counts": [9] * texts, "draws": 1}, {"dots": dots[5:]}])
    found = [Sensitivity(layer, scheme, 0, 0, 0, SCHEMES[scheme], 0) for layer, scheme in names]
    return halves.steadiness(made, journal, found)  # type: ignore[arg-type]


def test_texts_that_agree_and_texts_that_do_not() -> None:
    calm = said(ready(16, 16), 0.0, 16)
    assert calm["said"] == (
        "128 more sequences would not change the plan: about 0 of 6 layers otherwise, for 0.0 % less expected loss "
        "(half of the 16: 0 otherwise, 0.0 % more; ranks of layers correlate at 1.00)."
    )
    wild = said(ready(16, 16), 2.0, 16)
    assert wild["said"].startswith("128 more sequences would change the plan: about ")
    assert wild["said"].rpartition("--samples ")[2] in ("64.", "128.", "256.", "512.")
    assert wild["regret"] * 128 / 144 > 0.02 > calm["regret"]
    assert said(ready(16, 16), 2.0, 16) == wild


@pytest.mark.parametrize(
    ("made", "texts", "more", "sentence"),
    [
        (ready(40, 16), 16, {}, "give more text, this is all there is."),
        (ready(8, 0, rows=16), 16, {}, "128 more rows would change the plan: about"),
        (ready(3, 3), 3, {}, "3 sequences are too few to tell whether more would change the plan; give 4 or more."),
        (ready(9, 9), 9, {"schemes": ["int2-g32-sym"]}, "There is no choice of schemes to make a plan of: by halves"),
    ],
)
def test_other_words(made: Any, texts: int, more: dict[str, Any], sentence: str) -> None:
    assert sentence in said(made, 2.0, texts, **more)["said"]
