"""kill -9 at random moments, the same command again: are the files those of the unbroken run?

    python -m benchmarks.resume [--model FOLDER] [--kills 20] [--seed 0] [--json resume.json]

Without --model a tiny random llama is made. Each trial starts `compress quantize` in a fresh process and folder, kills
it at a random moment of the time that the unbroken run's journal was open, and runs the command again. Prints one
JSON object: how many trials ended with every file identical (journal and timing fields apart), and after which journal
line each kill fell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.shared import line

TIMED = {"seconds", "stages", "environment"}
REPORTS = {"report.html", "report.txt"}


def command(arguments: argparse.Namespace, model: str) -> list[str]:
    """The command of every trial; the output folder is relative, so that records are equal."""
    sizes = ["--samples", str(arguments.samples), "--seq-len", str(arguments.seq_len), "--eval-samples", "4"]
    words = ["quantize", model, "--out", "out", "--generate", "0", "--no-verify", "--threads", str(arguments.threads)]
    return [sys.executable, "-m", "compress.cli", *words, *sizes, "-q"]


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file of `out`; record.json without what was timed, reports and journal left out."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name, data = path.relative_to(out).as_posix(), path.read_bytes()
        if name == "compress/record.json":
            data = json.dumps(untimed(json.loads(data))).encode()
        if name != "compress/journal.jsonl" and name not in REPORTS:
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def untimed(value: Any) -> Any:
    """A JSON value without the keys that say how fast a run was."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMED}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def where(out: Path) -> str:
    """The newest journal line of a run that was killed."""
    journal = out / "compress" / "journal.jsonl"
    if not journal.is_file():
        return "before the journal"
    kinds = [
        json.loads(line)["kind"] for line in journal.read_text(encoding="utf-8").splitlines() if line.endswith("}")
    ]
    return f"after {kinds[-1]} ({kinds.count('block')} blocks)" if kinds else "first line"


def trial(words: list[str], cwd: Path, delay: float, expected: dict[str, str]) -> dict[str, Any]:
    """Kill one run `delay` seconds after its journal began, resume it, compare."""
    cwd.mkdir()
    process = subprocess.Popen(words, cwd=cwd, stderr=subprocess.DEVNULL)
    wait_for(process, cwd / "out", b'"start"')
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    died = where(cwd / "out")
    again = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    found = contents(cwd / "out") if again.returncode == 0 else {}
    differing = sorted(name for name in found | expected if found.get(name) != expected.get(name))
    return {
        "delay_seconds": round(delay, 2),
        "killed": process.returncode == -signal.SIGKILL,
        "moment": died,
        "exit_code": again.returncode,
        "identical": not differing,
        "differing": differing,
        "said": again.stderr.strip(),
    }


def wait_for(process: subprocess.Popen[bytes], out: Path, word: bytes) -> float:
    """The clock when a word appears in the journal of a run, or when the run ends without it."""
    journal = out / "compress" / "journal.jsonl"
    while process.poll() is None and not (journal.is_file() and word in journal.read_bytes()):
        time.sleep(0.002)
    return time.perf_counter()


def unbroken(words: list[str], cwd: Path) -> tuple[dict[str, str], float]:
    """Files of a run that nobody kills, and the seconds from the first to the last line of its journal."""
    cwd.mkdir()
    process = subprocess.Popen(words, cwd=cwd)
    begun = wait_for(process, cwd / "out", b'"start"')
    ended = wait_for(process, cwd / "out", b'"finished"')
    if process.wait():
        raise SystemExit(f"the unbroken run failed with code {process.returncode}")
    return contents(cwd / "out"), ended - begun


def run() -> dict[str, Any]:
    """The suite: twenty kills of a tiny model's run."""
    result = measure(parse([]))
    value = f"{result['identical']} of {result['trials']}"
    met = result["identical"] == result["trials"] and result["kills"] > result["trials"] // 2
    what = f"killed at random moments ({result['kills']} hit), rerun: every file identical"
    return {"lines": [line(what, value, f"{result['trials']}", met)], **result}


def parse(words: list[str]) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder; a tiny random llama without it")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the result here too")
    return parser.parse_args(words)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the trials and return what they showed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = arguments.model
        if model is None:
            from tests.tiny import save_tiny

            model = str(save_tiny("llama", root / "tiny-llama"))
        else:
            model = str(Path(model).resolve())
        words = command(arguments, model)
        expected, seconds = unbroken(words, root / "whole")
        draw = random.Random(arguments.seed)
        # while the journal is open: imports before it, and the interpreter's end after it, write nothing
        delays = [draw.uniform(0, seconds) for _ in range(arguments.kills)]
        trials = [trial(words, root / f"trial-{n}", delay, expected) for n, delay in enumerate(delays)]
    return {
        "suite": "resume",
        "model": arguments.model or "tiny random llama",
        "journal_seconds": round(seconds, 3),
        "kills": sum(t["killed"] for t in trials),
        "trials": len(trials),
        "identical": sum(t["identical"] for t in trials),
        "files": len(expected),
        "detail": trials,
    }


def main() -> None:
    """Run the trials and print the JSON object."""
    arguments = parse(sys.argv[1:])
    result = measure(arguments)
    text = json.dumps(result, indent=1)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    raise SystemExit(0 if result["identical"] == result["trials"] else 1)


if __name__ == "__main__":
    main()
