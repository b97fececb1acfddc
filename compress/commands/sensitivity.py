"""`compress sensitivity`: what each layer costs at each number of bits."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress sensitivity                                  # the demo model, built-in text, 2, 3, 4 and 8 bits",
    "compress sensitivity ./my-model --data notes.jsonl --out costs",
    "compress sensitivity ./bert --data rows.csv --schemes int4-g32-sym --schemes int8-row-sym",
    "compress sensitivity ./my-model --json > record.json",
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("sensitivity", cls=_run.Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    model: str | None = _run.MODEL,
    out: str | None = typer.Option(None, help="Output folder [default: MODEL-sensitivity]."),
    schemes: list[str] | None = _run.SCHEMES,
    metric: str | None = typer.Option(
        None, help="gradient: one pass backward; kl: measured, one layer swapped at a time [default: gradient]."
    ),
    method: str | None = typer.Option(None, help="gptq; or rtn, hqq, which need no data [default: gptq]."),
    option: list[str] | None = _run.OPTION,
    data: str | None = typer.Option(
        None, help="txt, md, jsonl, json, csv, tsv, parquet, folder or hub name [default: built-in text]."
    ),
    like: str | None = _run.LIKE,
    text_column: str | None = typer.Option(None, help="Column that holds the text [default: guessed]."),
    samples: int | None = typer.Option(None, help="Calibration sequences [default: 128]."),
    seq_len: int | None = typer.Option(None, help="Tokens per sequence [default: 256]."),
    task: str | None = typer.Option(None, help="What the model is for [default: auto, by its class]."),
    columns: list[str] | None = _run.COLUMNS,
    split: str | None = _run.SPLIT,
    filter: list[str] | None = _run.FILTER,
    select: str | None = _run.SELECT,
    seed: int | None = _run.SEED,
    threads: int | None = _run.THREADS,
    device: str | None = typer.Option(None, help="Where statistics are kept: cpu, cuda, cuda:1 [default: cpu]."),
    recipe: str | None = _run.RECIPE,
    allow_pickle: bool = _run.ALLOW_PICKLE,
    trust_remote_code: bool = _run.TRUST,
    overwrite: bool = _run.OVERWRITE,
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Measure what each layer loses at each scheme: one pass forward, one backward."""
    given = dict(locals())
    output = _run.Output(json, quiet, verbose, resumes=True)
    with _run.errors_as_sentences(output):
        from compress.pipeline.hooks import Hooks
        from compress.pipeline.sensitivity import sensitivity
        from compress.recipe import SensitivityRecipe

        settings = _run.settings_of(given)
        made = SensitivityRecipe.read(recipe, **settings) if recipe else SensitivityRecipe.build(**settings)
        with _run.Bars(output) as bars:
            record = sensitivity(made, overwrite, Hooks(bars.report, bars.say))
        _run.show(record, output)
