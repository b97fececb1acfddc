"""`compress report`: show a finished run again, or render it as HTML or text."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress report ./my-model-4bit",
    "compress report ./my-model-4bit --html report.html",
    "compress report bench.json",
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("report", cls=_run.Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    run: str = typer.Argument(help="Output folder of a run, or a record.json.", show_default=False),
    html: str | None = typer.Option(None, help="Write a self-contained page here."),
    text: str | None = typer.Option(None, help="Write plain text here."),
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Show a finished run again."""
    output = _run.Output(json, quiet, verbose)
    with _run.errors_as_sentences(output):
        from pathlib import Path

        from compress.core.errors import InputError
        from compress.core.files import atomic_write
        from compress.report import record as records

        path = Path(run)
        file = path / "compress" / "record.json" if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"{run} holds no record ({file} is missing); give the output folder of a finished run")
        record = records.read(file)
        if html:
            from compress.report.html import render

            atomic_write(Path(html), [render(record).encode()])
        if text:
            from compress.report.terminal import text as render_text

            atomic_write(Path(text), [render_text(record).encode()])
        _run.show(record, output)
