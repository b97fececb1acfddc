"""The page in a real browser without a network: charts drawn, console silent, nothing sideways, nothing executed.

Screenshots are kept in the test's temporary folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.report import html
from tests import fake_record as fake
from tests.browser import INSTALL, Browser, find_chromium

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.runtimes,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium here; install it with: {INSTALL}"),
]
RECORDS = {
    "quantize": (fake.quantize_record, 6),
    "bench": (fake.bench_record, 3),
    "encoder": (fake.encoder_record, 6),
    "chinese": (fake.chinese_record, 6),
    "hostile": (fake.hostile_record, 9),
    "tune": (fake.tune_record, 2),
    "empty": (fake.empty_record, 0),
}
# Marks of each chart: bars and points are paths, a heat map is an image; all must have an extent.
DRAWN = """[...document.querySelectorAll('.plot')].map(plot => {
  const marks = [...plot.querySelectorAll('svg .points path, svg .point path, svg path.point, svg .hm image')];
  return [plot.id, marks.filter(m => m.getBoundingClientRect().width > 0).length];
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for name, (factory, _) in RECORDS.items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(html.render(factory()), encoding="utf-8")
    return made


def test_the_checks_below_would_notice(browser: Browser, tmp_path: Path) -> None:
    """A page with every fault is caught, so silence means something."""
    page = tmp_path / "bad.html"
    wide = '<div style="width:3000px">x</div>'
    script = "console.error('said'); fetch('http://evil.invalid/').catch(() => 0); throw new Error('thrown')"
    page.write_text(f"<!doctype html>{wide}<script>{script}</script>", encoding="utf-8")
    browser.open(page, 1280)
    said = "\n".join(browser.complaints())
    assert "said" in said
    assert "thrown" in said
    assert browser.requests() == ["http://evil.invalid/"]
    assert browser.run("document.documentElement.scrollWidth") > 1280


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", RECORDS)
def test_page(browser: Browser, pages: dict[str, Path], name: str, width: int, tmp_path: Path) -> None:
    assert pages[name].stat().st_size < 6_000_000
    browser.open(pages[name], width, dark=width == 390)
    assert browser.complaints() == []
    assert browser.requests() == []
    drawn = browser.run(DRAWN)
    assert len(drawn) == RECORDS[name][1]
    assert all(marks > 0 for _, marks in drawn), drawn
    assert browser.run("window.innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.run("document.querySelectorAll('a').length") == 0
    browser.screenshot(tmp_path / f"{name}-{width}.png", full=name in ("quantize", "bench"))
    assert (tmp_path / f"{name}-{width}.png").stat().st_size > 5_000


def test_charts_follow_the_width_of_the_window(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["quantize"], 1280)
    wide = browser.run("document.querySelector('.plot svg').getBoundingClientRect().width")
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        {"width": 500, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    resized = """new Promise(done => { const began = performance.now(); (function look() {
      const width = document.querySelector('.plot svg').getBoundingClientRect().width;
      (width < 500 || performance.now() - began > 5000) ? done(width) : requestAnimationFrame(look);
    })(); })"""
    assert wide > 900
    assert browser.run(resized) < 500


def test_the_layer_table_sorts_by_number_from_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["quantize"], 1280)
    column = browser.run("""(() => { const heads = [...document.querySelectorAll('table.sortable th')];
      const at = heads.findIndex(h => h.textContent.startsWith('output error'));
      heads[at].querySelector('button').focus(); return at; })()""")
    orders = []
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            browser.call("Input.dispatchKeyEvent", {"type": kind, **key})
        rows = "[...document.querySelectorAll('table.sortable tbody tr')]"
        orders.append(browser.run(f"{rows}.map(row => Number(row.cells[{column}].dataset.key))"))
    errors = sorted(layer.output_error for layer in fake.quantize_record().layers)
    assert orders == [errors, errors[::-1]]
    assert browser.run("document.querySelectorAll('th[aria-sort=descending]').length") == 1


def test_dark_and_light_text_can_be_read(browser: Browser, pages: dict[str, Path]) -> None:
    contrast = """(() => {
      const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const card = light(getComputedStyle(document.querySelector('figure')).backgroundColor);
      const ink = [...document.querySelectorAll('.plot svg text')].map(t => getComputedStyle(t).fill);
      ink.push(getComputedStyle(document.querySelector('figcaption')).color);
      return Math.min(...ink.map(c => ratio(light(c), card)));
    })()"""
    for dark in (False, True):
        browser.open(pages["quantize"], 1280, dark=dark)
        assert browser.run(contrast) >= 4.5


def test_it_prints(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    browser.open(pages["quantize"], 1280, dark=True)
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
    assert browser.complaints() == []
