"""Which GPU kernel of vLLM will run a GPTQ checkpoint: rules of the kernels themselves, checked without a GPU.

Sources, in vLLM's repository under vllm/model_executor:
- `auto` takes gptq_marlin where bits are 4 or 8 and `sym` is true (layers/quantization/gptq_marlin.py, TYPE_MAP), and
  there the first kernel that can of Machete, Marlin, ExLlama (kernels/linear/mixed_precision/__init__.py).
- Machete: compute capability 9.0 (mixed_precision/machete.py), groups -1, 64, 128, inputs in 64s, outputs in 128s
  (layers/quantization/utils/machete_utils.py).
- Marlin: 7.5 and later, groups -1, 32, 64, 128, inputs in 128s, outputs in 64s (utils/marlin_utils.py,
  MARLIN_SUPPORTED_GROUP_SIZES, GPTQ_MARLIN_MIN_THREAD_K and _N).
- ExLlama: groups divide the inputs, outputs in 32 / bits, float16 (mixed_precision/exllama.py).
- everything else is layers/quantization/gptq.py: `gptq_gemm`, 2, 3, 4 and 8 bits, zero points, float16 only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from export.source import Coded


def kernel_notes(layers: Iterable[Coded]) -> Iterable[str]:
    """Sentences on what runs the layers on a GPU, and why it is not a faster kernel."""
    counts: Counter[tuple[str, str]] = Counter(kernel(coded) for coded in layers)
    whole = sum(counts.values())
    for (name, because), count in counts.most_common():
        share = "every layer" if count == whole else f"{count} of {whole} layers"
        reason = f" ({because})" if because else ""
        yield f"on a GPU vLLM runs {share} with {name}{reason}; statically checked, not run here"


def kernel(coded: Coded) -> tuple[str, str]:
    """The kernel that runs a layer, and what keeps it from a faster one."""
    scheme, (rows, columns) = coded.scheme, coded.layer.shape
    if scheme.bits not in (4, 8):
        return "gptq_gemm in float16", f"{scheme.bits} bits"
    if not scheme.symmetric:
        return "gptq_gemm in float16", "Marlin and Machete take symmetric codes only; quantize with --symmetric"
    if scheme.group_size not in (-1, 32, 64, 128):
        return "ExLlama in float16", f"groups of {scheme.group_size} are not 32, 64 or 128"
    machete = scheme.group_size != 32 and columns % 64 == 0 and rows % 128 == 0
    marlin = columns % 128 == 0 and rows % 64 == 0
    if machete and marlin:
        return "Machete (Hopper) or Marlin (Turing and later)", ""
    if marlin:
        return "Marlin (Turing and later)", ""
    need = f"Marlin needs inputs in 128s and outputs in 64s, the shape is {(rows, columns)}"
    return ("Machete (Hopper), else ExLlama in float16", need) if machete else ("ExLlama in float16", need)
