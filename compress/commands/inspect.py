"""`compress inspect`: what a model or an artifact is made of; no weight is read."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress inspect ./my-model",
    "compress inspect ./my-model-4bit",
    "compress inspect model.gguf --json",
    "compress inspect plan.json ./my-model-4bit/compress/plan.json        # what two plans differ in",
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("inspect", cls=_run.Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    model: str | None = _run.MODEL,
    other: str | None = typer.Argument(None, help="Of a plan.json: another one, to compare."),
    allow_pickle: bool = typer.Option(False, "--allow-pickle", help="Open .bin weights."),
    trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="Run code that comes with the model."),
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Show blocks, layers, roles, ties and sizes of a model or an artifact."""
    output = _run.Output(json, quiet, verbose)
    with _run.errors_as_sentences(output):
        from compress.pipeline.inspect import inspect, inspect_plans, show

        with _run.Bars(output) as bars:
            if (model or "").endswith(".json") or other is not None:
                record = inspect_plans(model or "", other)
            else:
                record = inspect(model or "demo", allow_pickle, trust_remote_code, bars.say)
        if output.json:
            _run.show(record, output)
        elif not output.quiet:
            show(record, _run.stdout_console())
