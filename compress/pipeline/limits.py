"""What cannot be done with a model as it is, in sentences: layers that cannot be packed, text that cannot run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from compress.core.checkpoint import Checkpoint, disk_parts
from compress.core.early import reads_weights
from compress.core.errors import MissingRuntimeError, RecipeError
from compress.core.opening import Opened
from compress.core.registry import load
from compress.core.types import FormatCaps, LayerRef, Plan, Scheme, Structure
from compress.pipeline.inputs import longest_sequence
from compress.pipeline.judge import reads_only
from compress.plan.uniform import Refuses, Uses, to_json
from compress.recipe import Recipe
from export import environments
from export.formats.compressed_tensors import FORMAT
from export.source import NotSolvedError, Planned

EXPERTS = "transformers decodes packed experts with one scheme for the whole model"
APART = (
    "The budget chooses for q, k and v, gate and up one by one, which vLLM wants alike: of the bits to choose from it "
    "opens 4 and 8 only. --schemes int4-g64-sym --schemes int8-row-sym makes a plan for it"
)
EARLY = "this model looks at weights while transformers opens it, which decodes them in time with one scheme only"


def refuses(checkpoint: Checkpoint, structure: Structure) -> Refuses:
    """Why a layer cannot be packed with a scheme in this model, as a function for the plan."""

    def refused(layer: LayerRef, scheme: Scheme, uses: Uses) -> str | None:
        if scheme.kind != "dense" and disk_parts(layer, checkpoint.sources[layer.param]) is None:
            what = "all experts" if layer.container == "experts" else "several layers"
            return f"the checkpoint stores {what} as one tensor, compressed-tensors one by one"
        if scheme.kind == "int" and layer.container == "embedding" and structure.tied:
            return "transformers cannot open a packed weight that is tied"
        several = len({used.name for _, used in uses if used.kind == "int"}) > 1
        if scheme.kind == "int" and layer.block < 0 and several and reads_weights(checkpoint.model, structure):
            return EARLY
        return FORMAT.refuses(layer, scheme, uses)

    return refused


def formats_of(recipe: Recipe) -> tuple[str, ...]:
    """The formats of --to. Raises UsageError for a name that none has."""
    asked = tuple(dict.fromkeys(environments.plain(name.strip()) for name in recipe.to.split(",") if name.strip()))
    for name in asked:
        load("format", name)
    return asked


def caps_of(recipe: Recipe) -> FormatCaps:
    """What OUT and all formats of --to can hold."""
    caps = FORMAT.caps
    for name in formats_of(recipe):
        other = load("format", name).caps
        groups = tuple(g for g in caps.auto_groups if g in other.auto_groups) or caps.auto_groups
        bits, fusing = tuple(b for b in caps.bits if b in other.bits), sorted({*caps.fusing, *other.fusing})
        caps = replace(caps, bits=bits, auto_groups=groups, fusing=tuple(fusing))
    return caps


def check_exports(recipe: Recipe, opened: Opened, checkpoint: Checkpoint, structure: Structure, plan: Plan) -> None:
    """Raises RecipeError for a format of --to that cannot hold what is planned: now, and not after the work."""
    asked = formats_of(recipe)
    if not asked:
        return
    planned = Planned(opened.folder, opened.name, checkpoint, structure, to_json(plan))
    refused = []
    for name in asked:
        form = load("format", name)
        with suppress(NotSolvedError, MissingRuntimeError):
            if (because := form.refuses(planned, form.options())) is not None:
                refused.append(f"{name}: {because}")
    if refused:
        raise RecipeError(f"{opened.name} cannot be exported as planned; {'; '.join(refused)}")


def one_scheme(checkpoint: Checkpoint, structure: Structure) -> str:
    """Why all layers in blocks must have one scheme; empty where they need not."""
    if reads_weights(checkpoint.model, structure):
        return EARLY
    return EXPERTS if any(layer.container == "experts" for layer in structure.layers) else ""


def apart(schemes: Sequence[str], caps: FormatCaps, most: str = "") -> bool:
    """Whether layers that servers fuse are chosen for one by one: of what may be chosen (`schemes`; none: all bits), no
    such server has kernels for all. Not where time is a budget, of at `most` so much: it is known of what reads one
    input."""
    bits = {Scheme.parse(name).bits for name in schemes} or set(caps.bits)
    return not most and not bits <= set(caps.fusing)


def of_choices(structure: Structure) -> list[str]:
    """Notes on which layers a budget chooses for as one."""
    if structure.alike:
        return [f"The budget chooses one scheme for all layers: {structure.alike}"]
    return [APART] if structure.apart and any(layer.fused_with for layer in structure.layers) else []


def not_mixed(structure: Structure, recipe: Recipe) -> str:
    """The note of a model whose layers are alike. Raises RecipeError when --mixed was asked for."""
    if recipe.mixed:
        raise RecipeError(f"--mixed is not possible for {structure.architecture}: {structure.alike}; use --uniform")
    return f"one scheme for all layers, none of 8 bits among those of {recipe.bits}: {structure.alike}"


def check_latency(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Before any work: raises RecipeError where no request of this model can be timed."""
    if not recipe.max_latency:
        return
    asked = f"--max-latency {recipe.max_latency}"
    if not reads_only(checkpoint.model):
        raise RecipeError(
            f"{asked} is for models that read whole texts and write none (classifiers, taggers, embedders), timed in "
            f"onnxruntime; {type(checkpoint.model).__name__} is none: give --max-bytes or --bits"
        )
    if "onnx" not in formats_of(recipe):
        raise RecipeError(f"{asked} is what an ONNX export takes in onnxruntime; add --to onnx")
    longest = longest_sequence(checkpoint.config)
    if recipe.request_shape[1] > longest:
        raise RecipeError(f"--request {recipe.request}: the model reads {longest} tokens at most; give fewer")


def cannot_stream(checkpoint: Checkpoint, structure: Structure, heard: bool) -> str | None:
    """Why no text can run through the model block by block. heard: it reads speech, and there are rows of it."""
    main = getattr(checkpoint.model, "main_input_name", "input_ids")
    if main != "input_ids" and not heard:
        remedy = "; --data with columns of audio and text" if main == "input_features" else ""
        return f"the model reads {main}, not text: weights are rounded to nearest and nothing is measured{remedy}"
    if structure.blocks[0].name == "":
        return "the model is not a list of blocks: weights are rounded to nearest and nothing is measured"
    if getattr(checkpoint.config, "share_encoder_decoder_embeddings", None) is False:
        return "source and target have their own vocabularies: weights are rounded to nearest and nothing is measured"
    repeats = int(getattr(checkpoint.config, "num_hidden_layers", 0) or 0)
    if repeats > len(structure.blocks):
        return f"one block stands for {repeats} layers: weights are rounded to nearest and nothing is measured"
    return None
