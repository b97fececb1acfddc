"""Runs `quantize` or `tune` in forked children that are killed at chosen moments; libraries are imported once.

`python -m tests.resume.runner` reads a JSON request per line, {"cwd", "verb", "kill", "settings", "calls"}, and answers
with {"signal", "error", "points"}. A point is a moment at which the process may die: before and after a journal line is
written and in the middle of it, before a finished file is renamed into place, in the middle of a file, before
something is deleted, before a training step. `kill` is the number of the point to die at, or null to come through and
count them.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


class Points:
    """Numbers the moments of one run, and dies at one of them."""

    def __init__(self, kill: int | None) -> None:
        self.kill = kill
        self.names: list[str] = []

    def reach(self, name: str) -> bool:
        """Note a moment; True when it is the one to die at."""
        self.names.append(name)
        return len(self.names) - 1 == self.kill

    def pass_or_die(self, name: str) -> None:
        """Note a moment, and die if it is the one."""
        if self.reach(name):
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self, stage: str, done: int, _: int) -> None:
        """Progress of a run: every training step is a point."""
        if stage == "training":
            self.pass_or_die(f"step {done}")

    def install(self, below: Path) -> None:
        """Wrap the journal and the calls of the system that change files below a folder."""
        from compress.core import journal

        append = journal.Journal.append

        def watched(self_: journal.Journal, kind: str, **fields: Any) -> None:
            self.pass_or_die(f"before line {kind}")
            if self.reach(f"middle of line {kind}"):
                with (self_.out / journal.JOURNAL).open("ab") as file:
                    file.write(json.dumps({"kind": kind, **fields}).encode()[:40])
                os.kill(os.getpid(), signal.SIGKILL)
            append(self_, kind, **fields)
            self.pass_or_die(f"after line {kind}")

        journal.Journal.append = watched  # type: ignore[method-assign]
        for call in ("replace", "unlink", "rmdir"):
            self._wrap(call, below)
        self._wrap_writes(below)
        os.fsync = lambda _: None  # a kill, unlike a power cut, loses nothing that was written: time saved

    def _wrap(self, call: str, below: Path) -> None:
        real = getattr(os, call)

        def wrapped(path: Any, *rest: Any, **more: Any) -> Any:
            if not isinstance(path, int) and Path(path).absolute().is_relative_to(below):
                self.pass_or_die(f"before {call} {Path(path).name}")
            return real(path, *rest, **more)

        setattr(os, call, wrapped)

    def _wrap_writes(self, below: Path) -> None:
        opened: dict[int, list[Any]] = {}
        real_open, real_write = os.open, os.write

        def open_(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            handle = real_open(path, flags, *rest, **more)
            if flags & os.O_CREAT and Path(path).absolute().is_relative_to(below):
                opened[handle] = [Path(path).name, 0]
            return handle

        def write(handle: int, data: Any) -> int:
            if handle in opened:
                opened[handle][1] += 1
                if opened[handle][1] == 2:
                    self.pass_or_die(f"middle of file {opened[handle][0]}")
            return real_write(handle, data)

        os.open, os.write = open_, write


def child(request: dict[str, Any], answer: int) -> None:
    """One run (or several calls of it), reporting through the pipe `answer`."""
    from compress.core.errors import CompressError
    from compress.pipeline.hooks import Hooks
    from compress.pipeline.quantize import quantize
    from compress.pipeline.tune import tune
    from compress.recipe import Recipe, TuneRecipe

    os.chdir(request["cwd"])
    points = Points(request.get("kill"))
    real_write = os.write
    points.install(Path(request["cwd"]).absolute() / "out")
    said = None
    try:
        for _ in range(request.get("calls", 1)):
            settings, overwrite = request["settings"], request.get("overwrite", False)
            if request.get("verb") == "tune":
                tune(TuneRecipe.build(out="out", **settings), overwrite, Hooks(points.step))
            else:
                quantize(Recipe.build(out="out", **settings), overwrite)
    except CompressError as error:
        said = f"{type(error).__name__}: {error}"
    real_write(answer, json.dumps({"error": said, "points": points.names}).encode())


def fork(request: dict[str, Any]) -> dict[str, Any]:
    """Run `child` in a forked process and wait for it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            child(request, writer)
        except BaseException as error:
            import traceback

            traceback.print_exc()
            os.write(writer, json.dumps({"error": f"{type(error).__name__}: {error}", "points": []}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {"signal": killed, **(json.loads(said) if said else {"error": None, "points": []})}


def main() -> None:
    """Import what is heavy, then serve requests until stdin ends."""
    import torch

    torch.set_num_threads(1)
    # imported once, for every child; quantize itself imports some of these only when it comes to them
    import accelerate
    import datasets
    import plotly.graph_objects
    import transformers.models.auto.modeling_auto
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import compress.methods.gptq
    import compress.pipeline.quantize
    import compress.pipeline.tune  # noqa: F401

    get_checkpoint_conversion_mapping("llama")  # fills a table that is the same for all
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration", "AutoTokenizer",
                 "BertForSequenceClassification"):  # fmt: skip
        getattr(transformers, name)
    del accelerate, datasets, plotly
    gc.collect()
    gc.freeze()  # the loop collects after every block: not the heap of the imports, again and again

    for line in sys.stdin:
        sys.stdout.write(json.dumps(fork(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
