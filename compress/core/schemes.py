"""How numbers are stored: schemes of weights, schemes of layer inputs, dtypes by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from compress.core.errors import RecipeError

if TYPE_CHECKING:
    import torch

BITS = (2, 3, 4, 5, 6, 8)
GGML_BITS = {"q4_0": 4, "q4_1": 4, "q5_0": 5, "q5_1": 5, "q8_0": 8}
"""ggml's block types: 32 weights, a float16 scale; the `_1` ones have a float16 minimum."""
CODEBOOK_GROUPS = {"nf4": 64}
"""Codes of four bits that name levels of a table (compress.core.numerics.codebook) -> weights that share a scale."""
NAMED = (*GGML_BITS, *CODEBOOK_GROUPS)
"""What `--scheme` takes."""
DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class Scheme:
    """How one weight is stored.

    kind `int`: codes of `bits` bits; one scale (and, unless symmetric, one integer zero) per group of
    `group_size` inputs, -1 for the whole row. kind `ggml`: one of GGML_BITS, groups of 32; unless symmetric with a
    float minimum instead of an integer zero. kind `codebook`: one of CODEBOOK_GROUPS, a scale each. kind `dense`: the
    weight itself in `scale_dtype`.
    `scale_dtype` is the dtype on disk, `scale_bits` how many significant bits of it are used (0: all); codes are
    solved against scales already rounded to that grid. With `scale_bits` + `bits` at most the significand of
    `scale_dtype`, every product of code and scale is exact in that dtype, so no server can round it.
    """

    kind: Literal["int", "ggml", "codebook", "dense"] = "int"
    bits: int = 4
    group_size: int = -1
    symmetric: bool = False
    scale_dtype: str = "bfloat16"
    scale_bits: int = 0

    def __post_init__(self) -> None:
        if self.scale_dtype not in DTYPE_BITS:
            raise RecipeError(f"scale dtype {self.scale_dtype!r} is unknown; use one of {', '.join(DTYPE_BITS)}")
        if self.kind == "int" and self.bits not in BITS:
            raise RecipeError(f"{self.bits} bits cannot be stored; use one of {', '.join(map(str, BITS))}")
        if self.kind == "ggml" and self.name not in GGML_BITS:
            raise RecipeError(f"ggml has no block type {self.name}; use one of {', '.join(GGML_BITS)}")
        if self.kind == "codebook" and (self.bits, self.group_size, self.symmetric) != (
            4,
            CODEBOOK_GROUPS["nf4"],
            True,
        ):
            raise RecipeError(f"the levels of nf4 are 16, for groups of {CODEBOOK_GROUPS['nf4']}; write nf4")
        if self.kind == "int" and self.group_size != -1 and self.group_size < 1:
            raise RecipeError(f"group size {self.group_size} is impossible; use 16 to 256, or -1 for the whole row")

    @property
    def name(self) -> str:
        """`int4-g64-asym`, `int8-row-sym`, `q4_1`, or the dtype of a dense weight."""
        if self.kind == "dense":
            return self.scale_dtype
        if self.kind == "ggml":
            return f"q{self.bits}_{0 if self.symmetric else 1}"
        if self.kind == "codebook":
            return "nf4"
        group = "row" if self.group_size == -1 else f"g{self.group_size}"
        return f"int{self.bits}-{group}-{'sym' if self.symmetric else 'asym'}"

    @classmethod
    def parse(cls, name: str, scale_dtype: str = "bfloat16") -> Scheme:
        """The inverse of `name`. Raises RecipeError for anything else."""
        if name in DTYPE_BITS:
            return cls("dense", DTYPE_BITS[name], -1, True, name)
        if name in GGML_BITS:
            return cls("ggml", GGML_BITS[name], 32, name.endswith("_0"), "float16")
        if name in CODEBOOK_GROUPS:
            return cls("codebook", 4, CODEBOOK_GROUPS[name], True, "float32")
        match = re.fullmatch(r"int(\d+)-(row|g(\d+))-(sym|asym)", name)
        if not match:
            raise RecipeError(f"scheme {name!r} is not understood; write int4-g64-asym, int8-row-sym, q4_1 or bfloat16")
        group = -1 if match[2] == "row" else int(match[3])
        return cls("int", int(match[1]), group, match[4] == "sym", scale_dtype)

    def groups(self, in_features: int) -> int:
        """G, the number of groups in a row of `in_features`."""
        return 1 if self.group_size == -1 else math.ceil(in_features / self.group_size)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Stored bits per weight, scales and zeros included, for a weight of `shape` (O, I)."""
        if self.kind == "dense":
            return float(DTYPE_BITS[self.scale_dtype])
        zero = DTYPE_BITS[self.scale_dtype] if self.kind == "ggml" else self.bits
        overhead = DTYPE_BITS[self.scale_dtype] + (0 if self.symmetric else zero)
        return self.bits + self.groups(shape[1]) * overhead / shape[1]


@dataclass(frozen=True)
class ActScheme:
    """How the input of a layer is rounded to int8 while the model runs.

    strategy: one grid for each token or for the whole tensor. dynamic: made from the values at hand; static ones are
    fixed beforehand from calibration text, by `observer` (compress.core.numerics.observers). symmetric: 0.0 is code 0.
    """

    strategy: Literal["token", "tensor"] = "token"
    dynamic: bool = True
    symmetric: bool = True
    observer: str = ""
    bits: int = 8

    def __post_init__(self) -> None:
        if self.strategy == "token" and not self.dynamic:
            raise RecipeError("a static grid is one for the whole tensor; tokens are not known beforehand")

    @property
    def name(self) -> str:
        """`a8-token-dynamic-sym`, `a8-tensor-static-asym`."""
        when = "dynamic" if self.dynamic else "static"
        return f"a{self.bits}-{self.strategy}-{when}-{'sym' if self.symmetric else 'asym'}"

    @classmethod
    def parse(cls, name: str) -> ActScheme:
        """The inverse of `name`, without the observer. Raises RecipeError for anything else."""
        match = re.fullmatch(r"a(\d+)-(token|tensor)-(dynamic|static)-(sym|asym)", name)
        if not match:
            raise RecipeError(f"activation scheme {name!r} is not understood; write a8-token-dynamic-sym")
        strategy: Literal["token", "tensor"] = "token" if match[2] == "token" else "tensor"
        return cls(strategy, match[3] == "dynamic", match[4] == "sym", "", int(match[1]))


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name` (`bfloat16`, `float16`, `float32`). Raises RecipeError for others."""
    import torch

    if name not in DTYPE_BITS:
        raise RecipeError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPE_BITS)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
