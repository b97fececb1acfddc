"""`compress export`: an artifact in other formats, judged in their runtimes."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress export ./my-model-4bit --to gguf                     # llama.cpp and Ollama",
    "compress export ./my-model-4bit --to gguf,gptq,onnx-genai     # several at once",
    "compress export ./my-bert-8bit --to onnx                      # opened by onnxruntime and optimum",
    "compress export ./my-model-4bit --to gguf --no-verify         # where the runtime is not installed",
)


OPTION = typer.Option(None, metavar="NAME=VALUE", help="Setting of a format, also FORMAT.NAME=VALUE; repeatable.")


class _Command(_run.Command):
    """Adds the formats and their options to the end of --help."""

    kind = "format"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("export", cls=_Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    artifact: str = typer.Argument(help="Output folder of compress quantize.", show_default=False),
    to: str = typer.Option(help="Formats, separated by commas; see below."),
    out: str | None = typer.Option(None, help="Write here [default: ARTIFACT/exports/FORMAT]."),
    option: list[str] | None = OPTION,
    runtime: list[str] | None = _run.RUNTIMES,
    verify: bool = typer.Option(True, "--verify/--no-verify", help="Open each file in its runtime and compare."),
    threads: int = typer.Option(0, help="Threads; 0 takes the physical cores."),
    trust_remote_code: bool = _run.TRUST,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace exports that are there."),
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Write an artifact in other formats and judge each in its runtime."""
    output = _run.Output(json, quiet, verbose)
    with _run.errors_as_sentences(output):
        from pathlib import Path

        from compress.pipeline.expected import VerifySettings
        from compress.pipeline.export import ExportSettings, export
        from compress.pipeline.hooks import Hooks

        settings = ExportSettings(
            to=tuple(name.strip() for name in to.split(",") if name.strip()),
            options=_run.named(option) or {},
            out=Path(out) if out else None,
            check=verify,
            overwrite=overwrite,
            verify=VerifySettings(tuple(runtime or ()), threads, trust_remote_code),
        )
        with _run.Bars(output) as bars:
            record, failures = export(Path(artifact), settings, Hooks(bars.report, bars.say))
        _run.show(record, output)
        if failures:
            raise failures[0]
