"""`compress quantize`: a model in, a 2- to 8-bit checkpoint and a report out."""

from __future__ import annotations

from typing import Any

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress quantize --bits 4                    # the demo model, built-in text",
    "compress quantize ./my-model --data reviews.csv --text-column body",
    "compress quantize org/name --bits 3 --group-size 64 --out small",
    "compress quantize ./my-model --max-bytes 90MB     # bits layer by layer, within a budget",
    "compress quantize ./my-bert --max-latency 8ms --to onnx      # of a text of 128 tokens in onnxruntime, here",
    "compress quantize ./my-model --plan plan.json     # a plan of another run, edited",
    "compress quantize ./my-model --bits 3 --effort best     # slow: more text, and blocks tuned by gradient",
    "compress quantize ./my-model --bits 8 --embeddings int8 --json > record.json",
    "compress quantize ./my-bert --bits 8 --activations static --data rows.csv   # W8A8 for fixed int8 kernels",
    "compress quantize ./bert --data r.csv --filter lang=en --select :2000    # rows of a task",
    "compress quantize ./llama --scheme q4_1       # solved for llama.cpp; then: compress export OUT --to gguf",
    "compress quantize ./llama --bits 4 --to gguf,onnx-genai      # and judged in llama.cpp and onnxruntime-genai",
    "compress quantize ./tuned --bits 8            # tuned by compress: judged on its own held-out rows",
)


class _Command(_run.Command):
    """Adds what --option takes to the end of --help."""

    kind = "method"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("quantize", cls=_Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    model: str | None = _run.MODEL,
    out: str | None = typer.Option(None, help="Output folder [default: MODEL-BITSbit]."),
    bits: int | None = typer.Option(None, help="2, 3, 4, 5, 6 or 8 [default: 4]."),
    scheme: str | None = typer.Option(
        None,
        help="Instead of --bits: ggml's blocks for llama.cpp (q4_0, q4_1, q5_0, q5_1, q8_0), nf4 for bitsandbytes.",
    ),
    group_size: str | None = typer.Option(None, help="Inputs per scale: 16 to 256, -1 whole row [default: auto]."),
    symmetric: bool | None = typer.Option(
        None, "--symmetric/--asymmetric", help="No zero points, or with [default: symmetric at 8 bits only]."
    ),
    max_bytes: str | None = typer.Option(
        None,
        help="Budget of the weight files, and of those of --to gguf and gptq, like 90MB: bits are chosen layer by "
        "layer, by what they cost.",
    ),
    bpw: float | None = typer.Option(None, help="The same as bits of the file for each weight of the model."),
    max_latency: str | None = typer.Option(
        None, help="Budget of time a request, like 8ms, in onnxruntime on this machine: encoders, with --to onnx."
    ),
    request: str | None = typer.Option(None, help="The request that time is for: texts x tokens [default: 1x128]."),
    max_drop: str | None = typer.Option(
        None,
        help="The task's figure (or perplexity) may be so much worse, like 1%: a small file for which that is shown.",
    ),
    schemes: list[str] | None = _run.CHOICES,
    profile: str | None = typer.Option(
        None, help="Folder or profile.json of compress sensitivity: a budget is planned by it, and not judged on text."
    ),
    plan: str | None = typer.Option(
        None, help="A plan.json, of another run or edited: schemes, methods and options of its layers are taken."
    ),
    mixed: bool | None = typer.Option(
        None, "--mixed/--uniform", help="8 bits where fewer do most damage, as measured [default: encoders at 4 bits]."
    ),
    mixed_share: float | None = typer.Option(None, help="Largest share of weights that get 8 bits [default: 0.25]."),
    activations: str | None = typer.Option(
        None, help="Inputs in int8 too: none, dynamic, static [default: dynamic for encoders at 8 bits, else none]."
    ),
    act_strategy: str | None = typer.Option(
        None, help="One int8 grid a token or a tensor [default: token if dynamic]."
    ),
    act_observer: str | None = typer.Option(
        None, help="How static grids are chosen: minmax, percentile, mse, entropy [default: minmax]."
    ),
    act_symmetric: bool | None = typer.Option(
        None, "--act-symmetric/--act-asymmetric", help="Zero points of inputs [default: symmetric by token only]."
    ),
    smooth: float | None = typer.Option(
        None, help="SmoothQuant's alpha, where outlying inputs can be folded away; 0.5 is usual [default: off]."
    ),
    reparam: str | None = typer.Option(
        None,
        help="Before layers are solved, same function: awq (scales of inputs), rotate, both by a comma, or none "
        "[default: as the plan of --plan, else none].",
    ),
    method: str | None = typer.Option(None, help="gptq; awq; or rtn, hqq, which need no data [default: gptq]."),
    option: list[str] | None = _run.OPTION,
    effort: str | None = typer.Option(
        None, help="fast, balanced, best: more text each; best tunes blocks by gradient, too [default: balanced]."
    ),
    embeddings: str | None = typer.Option(
        None, help="keep or int8; a tied head goes with it [default: int8 in encoders]."
    ),
    head: str | None = typer.Option(None, help="keep or int8, for an untied lm_head [default: keep]."),
    dtype: str | None = typer.Option(None, help="Of kept weights: auto, bfloat16, float16, float32 [default: auto]."),
    data: str | None = typer.Option(
        None, help="txt, md, jsonl, json, csv, tsv, parquet, folder or hub name [default: built-in text]."
    ),
    like: str | None = _run.LIKE,
    text_column: str | None = typer.Option(None, help="Column that holds the text [default: guessed]."),
    samples: int | None = typer.Option(None, help="Calibration sequences; fast takes 16, best 256 [default: 64]."),
    seq_len: int | None = typer.Option(None, help="Tokens per sequence [default: 512]."),
    task: str | None = typer.Option(None, help="What the model is for [default: auto, by its class]."),
    columns: list[str] | None = _run.COLUMNS,
    split: str | None = _run.SPLIT,
    filter: list[str] | None = _run.FILTER,
    select: str | None = _run.SELECT,
    eval_samples: int | None = typer.Option(
        None, help="Held-out documents or labelled rows; 0 measures nothing [default: 16 documents, 500 rows]."
    ),
    seed: int | None = _run.SEED,
    generate: int | None = typer.Option(None, help="Sample texts by both models [default: 3]."),
    threads: int | None = _run.THREADS,
    device: str | None = typer.Option(None, help="Where statistics are kept: cpu, cuda, cuda:1 [default: cpu]."),
    max_shard_size: str | None = typer.Option(None, help="Largest weight file [default: 5GB]."),
    to: str | None = typer.Option(
        None, help="Export afterwards, each judged in its runtime: gguf, onnx, gptq ...; see compress export --help."
    ),
    verify: bool | None = typer.Option(
        None, "--verify/--no-verify", help="Open the result in its runtimes and compare [default: verify]."
    ),
    recipe: str | None = _run.RECIPE,
    allow_pickle: bool = _run.ALLOW_PICKLE,
    trust_remote_code: bool = _run.TRUST,
    overwrite: bool = _run.OVERWRITE,
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Quantize a model and report what it cost."""
    given = dict(locals())
    output = _run.Output(json, quiet, verbose, resumes=True)
    with _run.errors_as_sentences(output):
        made = build_recipe(given, recipe)
        from compress.pipeline.hooks import Hooks
        from compress.pipeline.quantize import quantize

        with _run.Bars(output) as bars:
            hooks = Hooks(bars.report, bars.say)
            record = quantize(made, overwrite, hooks)
            failures: list[Exception] = []
            if made.to:
                from compress.pipeline.export import and_exports
                from compress.pipeline.timed import with_latency

                record, failures = and_exports(record, made, hooks)
                record = with_latency(record, made, hooks)
        _run.show(record, output)
        if failures:
            raise failures[0]


def build_recipe(given: dict[str, Any], recipe: str | None) -> Any:
    """A Recipe from what was given on the command line (None and False mean: not given), over a recipe file."""
    from compress.core.errors import RecipeError
    from compress.recipe import Recipe

    settings = _run.settings_of(given)
    settings |= {
        name: given[name] for name in ("symmetric", "act_symmetric", "mixed", "verify") if given.get(name) is not None
    }
    if "group_size" in settings and settings["group_size"] != "auto":
        try:
            settings["group_size"] = int(settings["group_size"])
        except ValueError:
            raise RecipeError(
                f"--group-size {settings['group_size']!r} is not a number; use 16 to 256, -1 or auto"
            ) from None
    return Recipe.read(recipe, **settings) if recipe else Recipe.build(**settings)
