"""The settings of a run: the only place where defaults live."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compress.core.errors import RecipeError
from compress.core.types import BITS, NAMED

DEMO = "demo"
EVAL_DOCUMENTS, EVAL_ROWS = 16, 500  # held out for measuring: documents of text, labelled rows
REPARAMS, AUTO, NONE = ("awq", "rotate"), "auto", "none"
PROOF_DOCUMENTS = 48  # of text, where a bound is to be shown
JUDGING_TOKENS = 16384  # by which plans are judged: of 4,096, one layer's part is off by a fifth to a third
EVAL_WRITTEN = 100  # the same of rows whose answers are written
SAMPLES = {"fast": 16, "balanced": 64, "best": 256}  # calibration sequences by effort
TUNING = "tune."  # what options of the tuning of blocks begin with


_TIME = r"(\d+(?:\.\d+)?)\s*(ms|s|us)"


class _Settings(BaseModel):
    """Settings of one command. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("select", mode="before", check_fields=False)
    @classmethod
    def _select(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # `select: 500` of a YAML file

    @field_validator("filter", mode="before", check_fields=False)
    @classmethod
    def _filter(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @classmethod
    def build(cls, **settings: Any) -> Self:
        """A recipe from keyword settings. Raises RecipeError with one readable sentence."""
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][:1]) or "settings"
            said = first["msg"].removeprefix("Value error, ")
            if not said.startswith("--"):
                said = f"{where}: {said} (given: {first['input']!r})"
            raise RecipeError(said) from None

    @classmethod
    def read(cls, path: str | Path, **overrides: Any) -> Self:
        """A recipe from a YAML file, with settings given on the command line on top."""
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} cannot be read: {error}") from None
        if not isinstance(loaded, dict):
            raise RecipeError(f"recipe {path} holds a {type(loaded).__name__}; it must hold 'name: value' lines")
        return cls.build(**{**loaded, **overrides})


class Recipe(_Settings):
    """What `compress quantize` does to which model with which data."""

    model: str = Field(DEMO, description="folder, hub id, .gguf file, or 'demo'")
    out: str = Field("", description="output folder; default: MODEL's name and the bits")
    bits: int = Field(4, description="bits per weight: 2, 3, 4, 5, 6 or 8")
    scheme: str = Field(
        "", description="a number format by name instead of bits and groups: q4_0, q4_1, q5_0, q5_1, q8_0, nf4"
    )
    group_size: int | Literal["auto"] = Field("auto", description="inputs per scale: 16 to 256, -1 whole row, auto")
    symmetric: bool | None = Field(None, description="no zero points; default: at 8 bits only")
    activations: Literal["auto", "none", "dynamic", "static"] = Field(
        "auto", description="inputs of linear layers in int8 too; auto: dynamic for encoders at 8 bits"
    )
    act_strategy: Literal["auto", "token", "tensor"] = Field("auto", description="one grid a token or a tensor")
    act_observer: Literal["auto", "minmax", "percentile", "mse", "entropy"] = Field(
        "auto", description="how a static grid is chosen; auto: minmax"
    )
    act_symmetric: bool | None = Field(None, description="no zero points; default: by token only")
    smooth: float = Field(
        0.0, ge=0, lt=1, description="SmoothQuant's alpha: outlying inputs smaller, their columns larger; 0: off"
    )
    reparam: str = Field(
        "auto",
        description="awq: scales of inputs; rotate: values of attention; both by a comma; none; auto: as --plan says",
    )
    mixed: bool | None = Field(
        None, description="8 bits where fewer do most damage, as measured; default: encoders at 4 bits"
    )
    mixed_share: float = Field(0.25, gt=0, lt=1, description="largest share of the weights that get 8 bits")
    max_bytes: str = Field("", description="budget of OUT's weight files: 90MB; bits are then chosen layer by layer")
    bpw: float | None = Field(
        None, gt=0, le=32, description="the same as bits of the file for each weight of the original"
    )
    max_latency: str = Field(
        "", description="budget of time a request, like 8ms: of encoders in onnxruntime on this machine, with --to onnx"
    )
    request: str = Field("1x128", description="what --max-latency is about: texts x tokens of each")
    max_drop: str = Field(
        "", description="the task's figure may be so much lower, 1%: a small file for which that is shown"
    )
    schemes: list[str] = Field(
        default_factory=list,
        description="what a budget chooses from: int4-g128-sym, int8-row-sym ...; default: 2 to 8 bits",
    )
    profile: str = Field("", description="profile.json of `compress sensitivity`, for the plan of a budget")
    plan: str = Field("", description="plan.json whose layers' schemes, methods and options are taken")
    method: str = Field("gptq", description="how codes are solved")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method, tune.NAME of the tuning")
    effort: Literal["fast", "balanced", "best"] = Field(
        "balanced",
        description="fast, balanced, best: 16, 64, 256 samples; best: blocks tuned against their output, too",
    )
    embeddings: Literal["auto", "keep", "int8"] = Field(
        "auto", description="token embedding (a tied head goes with it); auto: int8 in encoders that are W8A8 or mixed"
    )
    head: Literal["keep", "int8"] = Field("keep", description="lm_head, when it is not tied")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="dtype of kept weights")
    to: str = Field("", description="formats to export to afterwards, separated by commas: gguf, onnx, gptq ...")

    data: str | None = Field(None, description="calibration file, folder or hub name; default: built-in text")
    like: str | None = Field(
        None, description="sample of what the model is used on: how far is calibration text from it?"
    )
    text_column: str | None = Field(None, description="column that holds the text")
    samples: int = Field(SAMPLES["balanced"], ge=1, description="calibration sequences; default: by effort")
    seq_len: int = Field(512, ge=8, description="tokens per sequence")
    eval_samples: int | None = Field(
        None,
        ge=0,
        description="held-out documents or rows; 0 measures nothing; default: 16, 500, 100 written",
    )
    task: str = Field("auto", description="what the model is for; auto: its class")
    columns: dict[str, str] = Field(default_factory=dict, description="role -> column, where usual names do not fit")
    split: str = Field("", description="NAME of a split to divide, or train=NAME,validation=NAME,test=NAME")
    filter: list[str] = Field(default_factory=list, description="column=value, column!=value, column~text; all hold")
    select: str = Field("", description="rows used: 500 drawn by the seed, or a slice :500 or 100:600")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    generate: int = Field(3, ge=0, description="sample texts written by both models")

    threads: int = Field(0, ge=0, description="torch threads; 0: physical cores")
    device: str = Field("cpu", description="cpu, cuda, cuda:1 ...")
    max_shard_size: str = Field("5GB", description="largest weight file")
    allow_pickle: bool = Field(False, description="open .bin weights (loaded with weights_only=True)")
    trust_remote_code: bool = Field(False, description="run model code from the repository")
    verify: bool = Field(True, description="load the artifact with transformers and compare logits")

    @field_validator("bits")
    @classmethod
    def _bits(cls, value: int) -> int:
        if value not in BITS:
            raise ValueError(f"--bits {value} cannot be stored; use {', '.join(map(str, BITS))}")
        return value

    @field_validator("reparam")
    @classmethod
    def _reparam(cls, value: str) -> str:
        if value in (AUTO, NONE):
            return value
        if wrong := [name for name in names_of(value) if name not in REPARAMS]:
            raise ValueError(f"--reparam {wrong[0]} is unknown; use {', '.join(REPARAMS)}, both by a comma, or {NONE}")
        return ",".join(dict.fromkeys(names_of(value))) or NONE

    @field_validator("scheme")
    @classmethod
    def _scheme(cls, value: str) -> str:
        if value and value.lower() not in NAMED:
            raise ValueError(f"--scheme {value} is unknown; use {', '.join(NAMED)}, or --bits and --group-size")
        return value.lower()

    @model_validator(mode="after")
    def _one_scheme(self) -> Self:
        others = ("bits", "group_size", "symmetric", "mixed", "activations")
        fields = type(self).model_fields
        shown = [name for name in others if getattr(self, name) != fields[name].default]
        if self.plan and (self.has_budget or self.scheme or self.mixed):
            raise ValueError(f"--plan {self.plan} says what each layer gets; leave out budgets, --scheme and --mixed")
        if self.max_bytes and self.bpw:
            raise ValueError(f"--max-bytes {self.max_bytes} and --bpw {self.bpw} are one budget said twice; give one")
        given = {
            "max-bytes": self.max_bytes,
            "bpw": self.bpw,
            "max-latency": self.max_latency,
            "max-drop": self.max_drop,
        }
        budget = " ".join(f"--{name} {value}" for name, value in given.items() if value)
        if self.profile and (not budget or self.max_drop or self.max_latency):
            raise ValueError(
                f"--profile {self.profile} is for --max-bytes or --bpw alone: --max-drop judges plans on text, "
                "--max-latency asks about int8 inputs too; leave it out"
            )
        if self.schemes and not budget:
            raise ValueError(f"--schemes {self.schemes[0]} is what a budget chooses from; give one, or --bits")
        if budget and (self.scheme or shown):
            flag = "scheme" if self.scheme else shown[0].replace("_", "-")
            raise ValueError(f"{budget} chooses bits layer by layer; leave out --{flag}")
        if self.scheme and shown:
            raise ValueError(f"--scheme {self.scheme} says it all; leave out --{shown[0].replace('_', '-')}")
        return self

    @field_validator("max_latency")
    @classmethod
    def _latency(cls, value: str) -> str:
        if value and (not (match := re.fullmatch(_TIME, value)) or not float(match[1])):
            raise ValueError(f"--max-latency {value} is not understood; write it like 8ms, 0.5s or 800us")
        return value

    @field_validator("request")
    @classmethod
    def _request(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,5}", value):
            raise ValueError(f"--request {value} is not understood; write texts x tokens, like 1x128")
        return value

    @model_validator(mode="before")
    @classmethod
    def _samples_by_effort(cls, given: Any) -> Any:
        known = isinstance(given, dict) and given.get("effort") in SAMPLES
        return {"samples": SAMPLES[given["effort"]], **given} if known else given

    @model_validator(mode="after")
    def _one_effort(self) -> Self:
        said = next((name for name in self.options if name.startswith(TUNING)), None)
        if self.effort != "best" and said:
            raise ValueError(
                f"--option {said} is for the tuning of blocks, and --effort {self.effort} has none; use --effort best"
            )
        if self.effort == "best" and self.scheme:
            raise ValueError(f"--effort best tunes integer codes, and --scheme {self.scheme} has others; use --bits")
        if self.effort == "best" and self.activations in ("dynamic", "static"):
            raise ValueError(
                f"--effort best needs gradients, and none passes --activations {self.activations}; leave out one"
            )
        return self

    @field_validator("group_size")
    @classmethod
    def _group(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value != -1 and not 16 <= value <= 256:
            raise ValueError(f"--group-size {value} is out of range; use 16 to 256, -1 for the whole row, or auto")
        return value

    @property
    def has_budget(self) -> bool:
        """Whether bits are chosen layer by layer, within a size, a time or a loss."""
        return bool(self.max_bytes or self.bpw or self.max_latency or self.max_drop)

    @property
    def latency_ms(self) -> float | None:
        """The budget of time in milliseconds, None without one."""
        match = re.fullmatch(_TIME, self.max_latency)
        return float(match[1]) * {"ms": 1.0, "s": 1e3, "us": 1e-3}[match[2]] if match else None

    @property
    def request_shape(self) -> tuple[int, int]:
        """(texts, tokens of each) of the request that `max_latency` is about."""
        batch, tokens = self.request.split("x")
        return int(batch), int(tokens)


def names_of(value: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(name.strip() for name in value.split(",") if name.strip())


class SensitivityRecipe(_Settings):
    """What `compress sensitivity` asks of which model with which data."""

    model: str = Field(DEMO, description="folder, hub id, .gguf file, or 'demo'")
    out: str = Field("", description="output folder; default: MODEL's name and 'sensitivity'")
    schemes: list[str] = Field(
        default_factory=list, description="int4-g64-sym, int8-row-sym, q4_1 ...; default: 2 to 8 bits"
    )
    metric: Literal["gradient", "kl"] = Field(
        "gradient", description="expected from one pass backward, or measured, one layer swapped at a time"
    )
    method: str = Field("gptq", description="how codes are solved")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")

    data: str | None = Field(None, description="calibration file, folder or hub name; default: built-in text")
    like: str | None = Field(
        None, description="sample of what the model is used on: how far is calibration text from it?"
    )
    text_column: str | None = Field(None, description="column that holds the text")
    samples: int = Field(128, ge=2, description="calibration sequences")
    seq_len: int = Field(256, ge=8, description="tokens per sequence")
    task: str = Field("auto", description="what the model is for; auto: its class")
    columns: dict[str, str] = Field(default_factory=dict, description="role -> column, where usual names do not fit")
    split: str = Field("", description="NAME of a split to divide, or train=NAME,validation=NAME,test=NAME")
    filter: list[str] = Field(default_factory=list, description="column=value, column!=value, column~text; all hold")
    select: str = Field("", description="rows used: 500 drawn by the seed, or a slice :500 or 100:600")
    seed: int = Field(0, ge=0, description="seed of every random choice")

    threads: int = Field(0, ge=0, description="torch threads; 0: physical cores")
    device: str = Field("cpu", description="cpu, cuda, cuda:1 ...")
    allow_pickle: bool = Field(False, description="open .bin weights (loaded with weights_only=True)")
    trust_remote_code: bool = Field(False, description="run model code from the repository")

    def quantizing(self) -> Recipe:
        """The settings of the run whose layers are asked about: everything that both have."""
        shared = self.model_dump(exclude={"out", "schemes", "metric"})
        return Recipe.build(**shared, mixed=False, activations="none", symmetric=True, eval_samples=0, generate=0)


class TuneRecipe(_Settings):
    """What `compress tune` makes of which model with which data."""

    model: str = Field(description="folder, hub id or .gguf file")
    data: str = Field(description="rows with labels: file, folder or hub name")
    out: str = Field("", description="output folder; default: MODEL's name and the task")
    task: str = Field("auto", description="what the model is for; auto: its architecture, else the columns")
    columns: dict[str, str] = Field(default_factory=dict, description="role -> column, where usual names do not fit")
    split: str = Field("", description="NAME of a split to divide, or train=NAME,validation=NAME,test=NAME")
    filter: list[str] = Field(default_factory=list, description="column=value, column!=value, column~text; all hold")
    select: str = Field("", description="rows used: 500 drawn by the seed, or a slice :500 or 100:600")
    strict: bool = Field(False, description="refuse broken rows instead of working around them")

    method: str = Field("full", description="how the model is adapted")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")
    crf: bool = Field(False, description="a CRF over the tags of a sentence")
    epochs: int = Field(0, ge=0, description="passes over the training rows, at most; 0: 3, up to 20 for few rows")
    learning_rate: float | None = Field(None, gt=0, description="highest step size; default: the method's")
    batch_size: int = Field(16, ge=1, description="rows per forward pass")
    find_batch_size: bool = Field(False, description="halve the rows per forward pass until they fit into memory")
    accumulate: int = Field(1, ge=1, description="forward passes per step")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the step size grows")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field("linear", description="step size")
    patience: int = Field(2, ge=0, description="epochs without a better validation score; 0: never stop early")
    max_length: int = Field(256, ge=8, description="tokens of a row; the rest is cut off")
    resample: Literal["none", "weights", "over", "under"] = Field("none", description="what is done for rare classes")
    freeze: str = Field(
        "", description="not trained: embeddings, N (they and the first N blocks), encoder (all blocks)"
    )
    bf16: Literal["off", "on", "auto"] = Field("off", description="compute in bfloat16; auto: where a step is faster")
    checkpointing: bool = Field(False, description="less memory, more time")
    seed: int = Field(0, ge=0, description="seed of every random choice")

    threads: int = Field(0, ge=0, description="torch threads; 0: physical cores")
    allow_pickle: bool = Field(False, description="open .bin weights (loaded with weights_only=True)")
    trust_remote_code: bool = Field(False, description="run model code from the repository")

    @field_validator("bf16", mode="before")
    @classmethod
    def _bf16(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value  # YAML's on and off

    @field_validator("freeze", mode="before")
    @classmethod
    def _freeze(cls, value: Any) -> Any:
        found = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if found not in ("", "embeddings", "encoder") and not (isinstance(found, str) and found.isdecimal()):
            raise ValueError(f"--freeze {value} is not understood; use embeddings, encoder, or a number of blocks")
        return found
