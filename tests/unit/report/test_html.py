"""The page: hostile strings change no markup, nothing is fetched, it stays small, sections come and go."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import sys
from html.parser import HTMLParser

import pytest

from compress.core.errors import MissingExtraError
from compress.core.types import Generation, RunRecord
from compress.report import html
from tests import fake_record as fake


class Skeleton(HTMLParser):
    """Tags with the names of their attributes, visible text, and the content of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # Sort keys of numbers come and go with the number; everything else must not depend on names.
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", ()))
        self._inside = ""

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", ()))

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.text).append(data)


@pytest.fixture(scope="module")
def hostile() -> Skeleton:
    return Skeleton(html.render(fake.hostile_record()))


def test_hostile_strings_leave_the_same_markup_as_harmless_ones(hostile: Skeleton) -> None:
    harmless = tuple(f"harmless {i}" if attack else "" for i, attack in enumerate(fake.ATTACKS))
    calm = Skeleton(html.render(fake.hostile_record(harmless)))
    assert hostile.tags == calm.tags
    assert len(hostile.scripts) == len(calm.scripts) == 3


def test_hostile_strings_are_still_readable(hostile: Skeleton) -> None:
    text = "\n".join(hostile.text)
    assert text.count("</script><script>window.pwned=1</script>") >= 10
    assert "<img src=x onerror=window.pwned=2>" in text
    assert "&lt;script&gt; &amp;amp; &#60;" in text
    assert "${title}" in text


def test_only_inert_attributes(hostile: Skeleton) -> None:
    assert not [a for a in hostile.attributes if a[1].startswith("on")]
    assert {a[2] for a in hostile.attributes if a[1] in ("href", "src")} == {"data:,"}
    styles = {a[2] for a in hostile.attributes if a[1] == "style"}
    assert all(re.fullmatch(r"(height:\d+px|color:#[0-9a-f]{6})", style) for style in styles)


def test_figures_are_json_that_cannot_end_its_element(hostile: Skeleton) -> None:
    figures = next(s for s in hostile.scripts if s.startswith('{"chart-'))
    assert not set(figures) & set("<>&\u2028\u2029")
    assert len(json.loads(figures)) == 9


def test_the_policy_admits_exactly_our_two_scripts(hostile: Skeleton) -> None:
    policy = next(a[2] for a in hostile.attributes if a[0] == "meta" and a[1] == "content" and "default-src" in a[2])
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    allowed = re.search(r"script-src ([^;]+)", policy)
    assert allowed is not None
    ours = [s for s in hostile.scripts if not s.startswith('{"chart-')]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in ours]
    assert allowed[1].split() == hashes


def test_the_same_record_gives_the_same_bytes() -> None:
    assert html.render(fake.bench_record()) == html.render(fake.bench_record())


def test_sections_come_and_go() -> None:
    def ids(record: RunRecord) -> list[str]:
        return re.findall(r'<section id="([a-z]+)">', html.render(record))

    everything = [
        "summary",
        "size",
        "quality",
        "error",
        "samples",
        "verified",
        "plan",
        "layers",
        "notes",
        "run",
    ]
    assert ids(fake.quantize_record(2)) == [*everything, "reproduce", "next"]
    assert ids(fake.bench_record()) == ["summary", "quality", "speed", "notes", "run", "reproduce", "next"]
    assert ids(fake.empty_record()) == ["next"]
    assert "samples" not in ids(fake.encoder_record())


def test_a_very_large_model_and_endless_text_stay_under_6_mb() -> None:
    base = fake.quantize_record(2)
    layers = tuple(
        dataclasses.replace(
            base.layers[1 + i % 14],
            layer=f"model.layers.{i // 300}.mlp.experts.{i % 300}.down_proj",
            block=i // 300,
        )
        for i in range(20_000)
    )
    samples = tuple(Generation("p" * 10**5, {"original": "x" * 10**6, "b": "<" * 10**6}) for _ in range(40))
    notes = tuple("n" * 10**5 for _ in range(300))
    record = dataclasses.replace(base, layers=layers, generations=samples, notes=notes)
    page = html.render(record)
    assert len(page.encode()) < 6_000_000
    assert "600 with the largest error of 20,000" in page
    assert "16 more are in record.json" in page


def test_every_chart_has_words_and_every_table_a_caption() -> None:
    page = html.render(fake.quantize_record(2))
    assert page.count("<figcaption>") == page.count('class="plot"') == 6
    assert page.count("<table") == page.count("<caption>")
    assert '<html lang="en">' in page
    levels = [int(n) for n in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_without_plotly_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'compress-models\[report\]'") as caught:
        html.render(fake.quantize_record(1))
    assert caught.value.exit_code == 2


def test_layers_that_make_good_what_others_lost_say_so() -> None:
    text = "\n".join(Skeleton(html.render(fake.quantize_record())).text)
    assert "moved 4.00 %" in text
    assert "to make good what earlier layers had lost" in text


def test_layers_that_were_tuned_with_their_block_say_how_far() -> None:
    record = fake.quantize_record()
    first, second, *rest = record.layers
    tuned = dataclasses.replace(first, recoded=0.021, rescaled=0.5)
    left = dataclasses.replace(second, untuned="few tokens reach an expert")
    text = "\n".join(Skeleton(html.render(dataclasses.replace(record, layers=(tuned, left, *rest)))).text)
    assert "tuned: 2.10 % of codes, 50.0 % of scales" in text
    assert "not tuned: few tokens reach an expert" in text


def test_a_tuning_run_shows_its_balance_and_what_was_trained() -> None:
    page = html.render(fake.tune_record())
    assert "1.33 % trained" in page
    table = page.split("Balance of the labels")[2]  # after the label of its region
    assert [cell in table for cell in ("sport", "500", "55.6 %")] == [True, True, True]
