"""`compress inspect`: what a model or an artifact is made of; no weight is read."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress inspect ./my-model",
    "compress inspect ./my-model-4bit",
    "compress inspect model.gguf --json",
    "compress inspect ./my-model --data mine.jsonl --like prod.jsonl     # is my calibration text fit? in seconds",
    "compress inspect plan.json ./my-model-4bit/compress/plan.json        # what two plans differ in",
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("inspect", cls=_run.Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    model: str | None = _run.MODEL,
    other: str | None = typer.Argument(None, help="Of a plan.json: another one, to compare."),
    data: str | None = typer.Option(None, help="Calibration text to look at, as quantize takes it, instead of layers."),
    like: str | None = _run.LIKE,
    text_column: str | None = typer.Option(None, help="Column that holds the text [default: guessed]."),
    samples: int | None = typer.Option(None, help="Calibration sequences [default: 64]."),
    seq_len: int | None = typer.Option(None, help="Tokens per sequence [default: 512]."),
    task: str | None = typer.Option(None, help="What the model is for [default: auto, by its class]."),
    columns: list[str] | None = _run.COLUMNS,
    split: str | None = _run.SPLIT,
    filter: list[str] | None = _run.FILTER,
    select: str | None = _run.SELECT,
    seed: int | None = _run.SEED,
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help="Open .bin weights."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="Run code that comes with the model."),
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Show blocks, layers, roles, ties and sizes of a model or an artifact; or whether calibration text is fit."""
    given = dict(locals())
    output = _run.Output(json, quiet, verbose)
    with _run.errors_as_sentences(output):
        from compress.core.errors import UsageError
        from compress.pipeline.inspect import inspect, inspect_plans, inspect_text, show
        from compress.recipe import Recipe

        settings = _run.settings_of({name: value for name, value in given.items() if name != "other"})
        text = settings.keys() - {"model", "allow_pickle", "trust_remote_code"}
        plans = (model or "").endswith(".json") or other is not None
        if text and (plans or not text & {"data", "like"}):
            flag = f"--{sorted(text)[0].replace('_', '-')}"
            raise UsageError(f"{flag} is about calibration text; give a model, and --data or --like")
        with _run.Bars(output) as bars:
            if plans:
                record = inspect_plans(model or "", other)
            elif text:
                record = inspect_text(Recipe.build(**settings), bars.say)
            else:
                record = inspect(model or "demo", allow_pickle, trust_remote_code, bars.say)
        if output.json:
            _run.show(record, output)
        elif not output.quiet:
            show(record, _run.stdout_console())
