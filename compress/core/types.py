"""Every type that crosses a door between packages: frozen, plain, shapes in the docstring.

O = out features, I = in features, g = group size, G = ceil(I / g) groups a row, n = tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from compress.core.schemes import BITS as BITS
from compress.core.schemes import DTYPE_BITS as DTYPE_BITS
from compress.core.schemes import GGML_BITS as GGML_BITS
from compress.core.schemes import NAMED as NAMED
from compress.core.schemes import ActScheme as ActScheme
from compress.core.schemes import Scheme as Scheme
from compress.core.schemes import torch_dtype as torch_dtype

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ValueCounts:
    """How often values occur. counts: (65536,) int64 by the upper 16 bits of the float32; low, high: the exact ends."""

    counts: Tensor
    low: float
    high: float

    def table(self) -> tuple[Tensor, Tensor]:
        """(values, counts), both (k,): the middle of every cell that holds something, inside the ends."""
        import torch

        cells = self.counts.nonzero().flatten()
        middle = (cells << 16 | 0x8000) - ((cells >> 15) << 32)  # as signed 32 bits
        values = middle.to(torch.int32).view(torch.float32)
        # the cells around zero hold exact zeros, mostly
        values = torch.where((cells & 0x7FFF) == 0, torch.zeros(()), values)
        return values.clamp(self.low, self.high), self.counts[cells]


@dataclass(frozen=True)
class LayerRef:
    """One two-dimensional weight of the model, by structure.

    name: module path (`model.layers.0.self_attn.q_proj`; experts get their number:
    `model.layers.0.mlp.experts.3.gate_up_proj`). param: the parameter that holds it in the model.
    shape: (O, I) as a linear map, whatever the storage order. container says how it is stored:
    `linear` (O, I), `conv1d` (I, O), `experts` slice `expert` of (E, O, I), `experts_t` slice of (E, I, O).
    fused_with: the names of layers that read the same input and are fused by servers (q/k/v, gate/up),
    itself included. tied_to: the parameter that shares its storage.
    """

    name: str
    param: str
    shape: tuple[int, int]
    block: int
    role: str
    container: Literal["linear", "conv1d", "experts", "experts_t", "embedding"] = "linear"
    expert: int | None = None
    fused_with: tuple[str, ...] = ()
    tied_to: str | None = None


@dataclass(frozen=True)
class BlockRef:
    """One repeated block: module path `name`, its `stack` (path of the list it sits in), position in the stack."""

    index: int
    name: str
    stack: str
    position: int
    layers: tuple[LayerRef, ...]

    @property
    def prefix(self) -> str:
        """What the names of its parameters begin with; empty when the whole model is the block."""
        return f"{self.name}." if self.name else ""


@dataclass(frozen=True)
class Structure:
    """What was found by looking at the module tree. `generic` is a sentence when names were not recognised.

    alike: why all layers in blocks must have one scheme where this model is opened, empty where they need not.
    apart: layers that servers fuse may have schemes of their own, since these servers do not open what may be chosen.
    """

    architecture: str
    blocks: tuple[BlockRef, ...]
    embedding: LayerRef | None
    head: LayerRef | None
    tied: bool
    outside: tuple[LayerRef, ...] = ()
    generic: str | None = None
    alike: str = ""
    apart: bool = False

    @property
    def layers(self) -> tuple[LayerRef, ...]:
        """All layers inside blocks, in execution order."""
        return tuple(layer for block in self.blocks for layer in block.layers)


@dataclass(frozen=True)
class HalfStats:
    """Hessian and drift of every other batch of a layer's text, in the units of LayerStats: what is fitted to these
    tokens is judged by the others. share: their part in the weights of all tokens."""

    n_tokens: int
    share: float
    hessian: Tensor
    drift: Tensor


@dataclass(frozen=True)
class LayerStats:
    """Input statistics of one layer; the unit is per token, so layers and runs compare.

    hessian: (I, I) float32 = (2 / sum w) sum w x xT, w the weight of a token: u below for a layer with `drift`, 1 for
    others, both times what gradients say where they are known (compress.pipeline.importance).
    drift: (O, I) float32 = (2 / sum u) sum u (r - r') xT for a layer that adds its output to the residual stream; r and
    r' (O,) are the stream after it in the original and in the compressed model, this layer's weight the original's
    in both, u = 1 / mean(r^2). None for other layers, or when it was not asked for.
    half: of hessian and drift, where there are two batches or more.
    drift_hessian: hessian with w = u, where gradients say something else; None where it is `hessian`.
    values: of the input, when a static int8 grid is to be chosen.
    """

    n_tokens: int
    hessian: Tensor
    drift: Tensor | None = None
    half: HalfStats | None = None
    values: ValueCounts | None = None
    drift_hessian: Tensor | None = None


@dataclass(frozen=True)
class QTensor:
    """A quantized weight. `w = (codes - zero) * scale`, zero = 2^(bits-1) where `zero` is None.

    Of a codebook, codes name its levels: `w = level[codes] * scale`.

    codes: (O, I) uint8, unpacked. scale: (O, G), already on the grid of scheme.scale_dtype.
    zero: (O, G) uint8, or None for a symmetric scheme.
    minimum: (O, G) like scale, for the ggml schemes that have one: `w = codes * scale + minimum`.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    scheme: Scheme
    minimum: Tensor | None = None


@dataclass(frozen=True)
class LayerPlan:
    """What is done to one layer, and why (the reason is printed).

    packed: False when the artifact's format cannot hold the scheme: the weight is then stored dense and its codes
    beside it. activation: how its input is rounded, None when it stays as it is.
    """

    layer: str
    scheme: Scheme
    method: str
    reason: str
    options: dict[str, Any] = field(default_factory=dict)
    packed: bool = True
    activation: ActScheme | None = None

    @property
    def treatment(self) -> str:
        """`int4-g32-sym`; where inputs are rounded too, `int8-row-sym a8-token-dynamic-sym`."""
        return f"{self.scheme.name} {self.activation.name}" if self.activation else self.scheme.name


@dataclass(frozen=True)
class Plan:
    """One LayerPlan for every weight matrix, embedding and head included; predicted bytes of OUT's weights.

    in_float: what else the model computes that stays in float -> why. predicted_ms: of one request, where a budget
    of time was given.
    """

    layers: dict[str, LayerPlan]
    predicted_bytes: int
    notes: tuple[str, ...] = ()
    in_float: dict[str, str] = field(default_factory=dict)
    predicted_ms: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What one layer at one treatment costs. scheme: see LayerPlan.treatment. value: expected loss, in the unit of its
    profile, with a 95 % interval.

    bits: of one weight, scales included. error: tr(E H E^T) / tr(W H W^T) of its output.
    """

    layer: str
    scheme: str
    value: float
    low: float
    high: float
    bits: float
    error: float


@dataclass(frozen=True)
class LayerMethod:
    """A pure function `(weight (O, I), stats or None, scheme, options) -> (QTensor, fallback sentence or None)`.

    needs: options -> names of the statistics it asks for: `hessian`; `drift`, and then the weight it is given has been
    moved to make good what earlier layers lost (compress.core.numerics.correct). None for data-free methods.
    """

    quantize: Callable[..., tuple[QTensor, str | None]]
    options: type
    needs: Callable[[Any], tuple[str, ...]]
    paper: str
    summary: str


@dataclass(frozen=True)
class LayerResult:
    """One layer after its method ran.

    output_error: tr((W-Q) H (W-Q)^T) / tr(W H W^T), nan without statistics. weight_error: |W-Q|^2 / |W|^2. Both are
    what rounding cost: W is the weight that was solved for. moved: |W - W0|^2 / |W0|^2, how far that is from the
    original's W0, 0 unless it makes good what earlier layers lost.
    fallback: a sentence when the method could not run as planned; never silent.
    activation: the name of the scheme its input is rounded with, "" for none. reparams: what was done to the input
    before (smooth, awq, rotate), separated by commas.
    recoded, rescaled: shares of its codes and scales that tuning the block moved; errors are those from before.
    untuned: why it was left as it was solved when the block was tuned.
    """

    layer: str
    block: int
    role: str
    shape: tuple[int, int]
    scheme: str
    method: str
    reason: str
    bytes_before: int
    bytes_after: int
    output_error: float
    weight_error: float
    seconds: float
    n_tokens: int = 0
    moved: float = 0.0
    fallback: str | None = None
    activation: str = ""
    reparams: str = ""
    recoded: float = 0.0
    rescaled: float = 0.0
    untuned: str = ""


@dataclass(frozen=True)
class BlockResult:
    """One block after it was committed. hidden_error: held-out |h - h'|^2 / |h|^2 at the block's output.

    solved_error, tuned_error: of a block that was tuned, the same on calibration text before and after, each token
    relative to its own energy (compress.core.block_method).
    """

    block: int
    name: str
    hidden_error: float
    hidden_cosine: float
    seconds: float
    solved_error: float | None = None
    tuned_error: float | None = None


@dataclass(frozen=True)
class FormatCaps:
    """What a format and its runtimes can hold; read by the planner before anything is solved.

    auto_groups: group sizes tried for `auto`, largest first. containers: storage orders that can be packed.
    fusing: bits that servers have kernels for which fuse layers (q, k and v; gate and up) and want one scheme of them.
    """

    bits: tuple[int, ...]
    auto_groups: tuple[int, ...]
    symmetric_only: frozenset[str]
    containers: frozenset[str]
    notes: tuple[str, ...] = ()
    fusing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One figure. `low` and `high` bound the 95 % interval (None where there is none); `n` counts samples."""

    subject: str
    name: str
    unit: str
    median: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """A sample written by the original and by the compressed model from the same prompt."""

    prompt: str
    texts: dict[str, str]


@dataclass(frozen=True)
class TokenSet:
    """Token ids ready for the model, one row a sequence, and where they came from.

    sequences: list of (L,) int64 tensors, any lengths. documents: document number of each sequence.
    digest: sha256 over ids and settings. source: what a person would call it.
    """

    sequences: tuple[Tensor, ...]
    documents: tuple[int, ...]
    digest: str
    source: str

    @property
    def n_tokens(self) -> int:
        """Total number of tokens."""
        return sum(int(s.numel()) for s in self.sequences)


@dataclass(frozen=True)
class RunRecord:
    """Everything a report is made from. Plain data; `compress.report.record` reads and writes it as JSON.

    model: name, architecture, parameters, bytes, blocks, dtype. data: calibration and held-out cards.
    training: the history of `tune`, see compress.train.loop. sensitivity: unit, texts, answers, and layers with
    scheme, value, low and high.
    stages: seconds by stage. environment: versions, cpu, threads. reproduce: the command line.
    """

    command: str
    model: dict[str, Any]
    artifact: str | None
    recipe: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    layers: tuple[LayerResult, ...] = ()
    blocks: tuple[BlockResult, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    verified: tuple[dict[str, Any], ...] = ()
    generations: tuple[Generation, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    sensitivity: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stages: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    reproduce: str = ""
