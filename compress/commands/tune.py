"""`compress tune`: a model and labelled rows in, a task model and scores out."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress tune ./minilm --data reviews.csv                 # columns text and label",
    "compress tune ./bert --data tweets.conll --epochs 5       # words and BIO tags",
    "compress tune ./bert --data squad.jsonl                   # question, context, answers",
    "compress tune ./bert --data quiz.csv                      # question, choices, label",
    "compress tune ./llama --data texts.csv --method lora      # a language model on text, chats, prompt + response",
    "compress tune org/name --data topics/ --out topics-model  # one sub-folder of texts for each class",
    "compress tune ./bert --data pairs.csv --columns text=premise --columns pair=claim",
    "compress tune ./minilm --data pairs.csv --task feature-extraction    # an embedder: query and passage",
    "compress tune ./bert --data set/ --split train=train,test=validation # the parts as the data has them",
    "compress tune ./bert --data r.csv --filter lang=en --filter 'label!=' --select 5000",
    "compress tune ./bert --data r.csv --resample over --freeze 4         # rare classes; the lower blocks stay",
    "compress tune ./bert --data r.csv --batch-size 64 --find-batch-size --bf16 auto",
)


class _Command(_run.Command):
    """Adds the methods and their options to the end of --help."""

    kind = "tuning"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("tune", cls=_Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    model: str = typer.Argument(help="Folder, hub id or .gguf file."),
    data: str = typer.Option(help="Rows with labels: csv, tsv, jsonl, parquet, conll, a folder, or a hub name."),
    out: str | None = typer.Option(None, help="Output folder [default: MODEL-TASK]."),
    task: str | None = typer.Option(None, help="What the model is for [default: its class, else the columns]."),
    columns: list[str] | None = _run.COLUMNS,
    split: str | None = _run.SPLIT,
    filter: list[str] | None = _run.FILTER,
    select: str | None = _run.SELECT,
    strict: bool = typer.Option(
        False, "--strict", help="Refuse broken rows (BIO tags, answers) instead of mending them."
    ),
    method: str | None = typer.Option(None, help="full, bitfit, lora ..., see below [default: full]."),
    option: list[str] | None = _run.OPTION,
    crf: bool = typer.Option(False, "--crf", help="Learn which tags follow one another, for taggers."),
    epochs: int | None = typer.Option(
        None, help="Passes over the training rows, at most [default: 3, up to 20 for few rows]."
    ),
    learning_rate: float | None = typer.Option(None, help="Highest step size [default: the method's]."),
    batch_size: int | None = typer.Option(None, help="Rows per forward pass [default: 16]."),
    find_batch_size: bool = typer.Option(
        False, "--find-batch-size", help="Halve --batch-size until a step fits into memory; rows per step stay as many."
    ),
    accumulate: int | None = typer.Option(None, help="Forward passes per step [default: 1]."),
    warmup: float | None = typer.Option(None, help="Share of steps in which the step size grows [default: 0.1]."),
    weight_decay: float | None = typer.Option(None, help="Of AdamW [default: 0.01]."),
    schedule: str | None = typer.Option(None, help="linear, cosine, constant, constant_with_warmup [default: linear]."),
    patience: int | None = typer.Option(None, help="Epochs without a better score; 0: go on [default: 2]."),
    max_length: int | None = typer.Option(None, help="Tokens of a row; the rest is cut off [default: 256]."),
    resample: str | None = typer.Option(
        None,
        help="Rare classes: weights in the loss, over (their rows repeated), under (rows of others left out) or none "
        "[default: none].",
    ),
    freeze: str | None = typer.Option(
        None,
        metavar="WHAT",
        help="Not trained, for --method full: embeddings, a number (they and so many blocks), or encoder (all blocks).",
    ),
    bf16: str | None = typer.Option(
        None, help="Compute in bfloat16: on, off, or auto, where a step of this model is faster so [default: off]."
    ),
    checkpointing: bool = typer.Option(False, "--checkpointing", help="Less memory, more time."),
    seed: int | None = _run.SEED,
    threads: int | None = _run.THREADS,
    recipe: str | None = _run.RECIPE,
    allow_pickle: bool = _run.ALLOW_PICKLE,
    trust_remote_code: bool = _run.TRUST,
    overwrite: bool = _run.OVERWRITE,
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Make or adapt a task model and report its scores."""
    given = dict(locals())
    output = _run.Output(json, quiet, verbose, resumes=True)
    with _run.errors_as_sentences(output):
        from compress.recipe import TuneRecipe

        settings = _run.settings_of(given)
        made = TuneRecipe.read(recipe, **settings) if recipe else TuneRecipe.build(**settings)
        from compress.pipeline.hooks import Hooks
        from compress.pipeline.tune import tune

        with _run.Bars(output) as bars:
            record = tune(made, overwrite, Hooks(bars.report, bars.say))
        _run.show(record, output)
