"""The end of a run: the artifact's README, verification, sample texts, the record and the reports."""

from __future__ import annotations

import shlex
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from torch import nn

from compress.core.artifact import open_artifact
from compress.core.checkpoint import Checkpoint
from compress.core.errors import MissingExtraError, OutputError, VerificationError
from compress.core.files import atomic_write, sweep, write_json
from compress.core.journal import WORK, Journal
from compress.core.skeleton import build_skeleton, has_base
from compress.core.types import Generation, Plan, RunRecord, Structure, TokenSet
from compress.core.writing import read_config
from compress.measure.client import Worker
from compress.measure.subject import WorkerSettings
from compress.pipeline import judge
from compress.pipeline.inputs import load_tokenizer
from compress.pipeline.store import Store
from compress.pipeline.stream import Report, remove_work
from compress.plan.uniform import all_layers
from compress.recipe import Recipe, SensitivityRecipe, TuneRecipe
from compress.report import html, terminal
from compress.report import record as records
from compress.report.steps import auto_class
from export.formats.compressed_tensors import FORMAT, Stored, before_writing
from export.verify import check_stored, compare_whole

WHOLE_BYTES = 600_000_000
"""Float32 size up to which a run may load the whole model (in another process) to check it and to write samples."""
SAMPLE_TOKENS = 48


def finished_record(out: Path, journal: Journal) -> RunRecord | None:
    """The record of a run that was finished before by the same command; None when there is work left.

    Raises ModelError when a file of the finished artifact is missing.
    """
    if journal.last("finished") is None:
        return None
    open_artifact(out, verify=False)
    return records.read(out / "compress" / "record.json")


def check_work(store: Store, structure: Structure, journal: Journal) -> None:
    """Raises OutputError when files that the journal of an unfinished run speaks of are gone."""
    store.work.mkdir(parents=True, exist_ok=True)
    done = len(journal.of("block"))
    needed = [store.block_path(block.index) for block in structure.blocks[:done]]
    if journal.last("outside") is not None:
        needed.append(store.block_path(-1))
    if missing := [path for path in needed if not path.is_file()]:
        raise OutputError(f"{missing[0]} of the interrupted run is gone; pass --overwrite to start over")


def clean(out: Path) -> None:
    """Delete what only an unfinished run needs."""
    if (out / WORK).is_dir():
        remove_work(out / WORK)
    sweep(out)


def quantization_config(
    checkpoint: Checkpoint, structure: Structure, plan: Plan, store: Store
) -> dict[str, object] | None:
    """The `quantization_config` that describes what is packed, under module and checkpoint names alike."""
    packed: dict[str, Stored] = {}
    dense: set[str] = set()
    experts = False
    base = f"{getattr(checkpoint.model, 'base_model_prefix', '')}."
    for layer in all_layers(structure):
        chosen = plan.layers[layer.name]
        keys = [key.removesuffix(".weight") for key, _, _ in store.parts(layer) or []]
        if judge.reads_only(checkpoint.model) and layer.expert is None:  # AutoModel opens it without its head
            keys.append(layer.name.removeprefix(base))
        if chosen.packed and chosen.scheme.kind == "int":
            stored = Stored.of(layer, chosen)
            packed |= dict.fromkeys([*keys, *([layer.name] if layer.expert is None else [])], stored)
            experts = experts or layer.expert is not None
        elif layer.role != "embedding":
            dense |= {layer.name, *keys}
    # whatever else looks like a linear to a server (routers), under the checkpoint's names
    for key, entry in checkpoint.entries.items():
        name = key.removesuffix(".weight")
        if key.endswith(".weight") and len(entry.shape) == 2 and name not in packed and "embed" not in name:
            dense.add(name)
    if judge.reads_only(checkpoint.model):
        dense |= _headless_linears(checkpoint)
    return FORMAT.quantization_config(packed, sorted(dense - set(packed)), experts)


def _headless_linears(checkpoint: Checkpoint) -> set[str]:
    """Linears of the model without its head that have no weights in the checkpoint: AutoModel makes a pooler for a
    tagger, and would decode codes that are not there."""
    if not has_base(checkpoint.model):
        return set()
    model = build_skeleton(deepcopy(checkpoint.model.config), checkpoint.folder, base=True)
    prefix = f"{getattr(checkpoint.model, 'base_model_prefix', '')}."
    known = {key.removesuffix(".weight").removeprefix(prefix) for key in checkpoint.entries}
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in known}


def write_readme(out: Path, name: str, plan: Plan, notes: tuple[str, ...], architecture: str) -> None:
    """README.md of the artifact: what it is and the exact lines that open it."""
    packed = [p for p in plan.layers.values() if p.scheme.kind == "int" and p.packed]
    schemes = sorted({f"{p.scheme.name} {p.activation.name if p.activation else ''}".strip() for p in packed})
    loader = auto_class(architecture)
    beside = [n for n, p in plan.layers.items() if p.scheme.kind != "dense" and not p.packed]
    lines = [
        f"# {name}, compressed",
        "",
        f"Packed with compressed-tensors ({', '.join(schemes) or 'nothing packed'}) by compress.",
        "",
        "```python",
        f"from transformers import {loader}, AutoTokenizer",
        f'model = {loader}.from_pretrained(".", dtype="auto")   # needs: pip install compressed-tensors',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        *before_writing(read_config(out)),
        "```",
        "",
    ]
    if loader == "AutoModelForCausalLM":
        lines += ["```sh", "vllm serve . --dtype bfloat16", "```", ""]
    if beside:
        lines += [
            f"{len(beside)} layers ({beside[0]}, ...) are stored dense, since this format cannot hold their codes;",
            "the codes are in compress/codes*.safetensors.",
            "",
        ]
    lines += [f"- {note}" for note in notes]
    atomic_write(out / "README.md", ["\n".join(lines).encode() + b"\n"])


def command_line(recipe: Recipe | TuneRecipe | SensitivityRecipe, out: Path) -> str:
    """The command that makes this artifact again, with every setting that is not the default."""
    verb = _VERBS[type(recipe)]
    words = ["compress", verb, *([] if recipe.model == "demo" else [recipe.model])]
    for name, info in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if name in ("model", "out") or isinstance(value, dict) or value == info.default:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else _OFF.get(name, f"--no-{flag}"))
        elif isinstance(value, list):
            words += [word for item in value for word in (f"--{flag}", str(item))]
        else:
            words += [f"--{flag}", str(value)]
    named = {"--option": recipe.options, "--columns": recipe.columns}
    for flag, values in named.items():
        for key, value in values.items():
            words += [flag, f"{key}={value}"]
    return shlex.join([*words, "--out", str(out)])


_VERBS = {Recipe: "quantize", TuneRecipe: "tune", SensitivityRecipe: "sensitivity"}
_OFF = {"symmetric": "--asymmetric", "act_symmetric": "--act-asymmetric", "mixed": "--uniform"}


def verify_and_sample(record: RunRecord, store: Store, heldout: TokenSet | None, report: Report) -> RunRecord:
    """Check the artifact with the libraries that will open it, and let both models write.

    Packed layers are always decoded and compared, one at a time. The whole model is loaded, in another process,
    only when it takes less than WHOLE_BYTES in float32: a run must not need the memory it promised to do without.
    """
    recipe = Recipe(**record.recipe)
    out = Path(record.artifact or "")
    notes = list(record.notes)
    verified = []
    small = store.checkpoint.parameters * 4 <= WHOLE_BYTES
    if recipe.verify:
        report("verifying", 0, 1)
        verified.append(check_stored(out))
        probe = store.work / "probe.safetensors"
        if small and probe.is_file():
            verified.append(compare_whole(out, probe))
        elif not small:
            notes.append(
                f"the model takes {store.checkpoint.parameters * 4 / 1e9:.1f} GB in float32, so it was not loaded "
                "whole: its packed weights were checked layer by layer and no sample texts were written"
            )
        report("verifying", 1, 1)
    generations: tuple[Generation, ...] = ()
    if small and recipe.generate and heldout is not None and judge.kind_of(store.checkpoint.model) == "causal":
        report("writing samples", 0, 1)
        generations = _samples(recipe, store, out, heldout)
        report("writing samples", 1, 1)
    return replace(record, verified=tuple(verified), generations=generations, notes=tuple(notes))


def _samples(recipe: Recipe, store: Store, out: Path, heldout: TokenSet) -> tuple[Generation, ...]:
    source = store.checkpoint.folder
    tokenizer = load_tokenizer(source, recipe.trust_remote_code)
    prompts = judge.prompts_of(heldout.sequences, tokenizer, recipe.generate)
    settings = WorkerSettings(threads=recipe.threads, trust_remote_code=recipe.trust_remote_code)
    texts = {}
    for name, folder in (("original", source), (str(out), out)):
        with Worker.open(str(folder), settings) as worker:
            texts[name] = [str(sample["text"]) for sample in worker.generate(prompts, SAMPLE_TOKENS)]
    return tuple(
        Generation(prompt, {name: written[n] for name, written in texts.items()}) for n, prompt in enumerate(prompts)
    )


def write_record(out: Path, record: RunRecord) -> RunRecord:
    """report.html, report.txt and record.json; without plotly no page, and a note that says which extra it needs."""
    try:
        page: str | None = html.render(record)
    except MissingExtraError as error:
        page = None
        record = replace(record, notes=(*record.notes, f"report.html was left out: {error}"))
    if page is not None:
        atomic_write(out / "report.html", [page.encode()])
    atomic_write(out / "report.txt", [terminal.text(record).encode()])
    write_json(out / "compress" / "record.json", records.to_json(record))
    return record


def raise_if_unverified(record: RunRecord) -> None:
    """Raises VerificationError when the artifact does not agree with the compressed model."""
    for line in record.verified:
        if not line["passed"]:
            raise VerificationError(
                f"{record.artifact}: {line['check']} differ by {line.get('difference')}, at most "
                f"{line.get('tolerance')} is rounding; do not serve this file"
            )
