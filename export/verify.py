"""Does the file that was written say what was meant? Asked of the libraries that will read it, not of ours.

Two checks. `check_stored` decodes every packed weight with compressed-tensors itself, one layer in memory, and
compares it with our own decoding bit for bit. `compare_whole` opens the artifact in a fresh process with plain
transformers and compares its outputs with those of the compressed model in memory.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compress.core.checkpoint import read_index
from compress.core.device import child_environment
from compress.core.errors import VerificationError
from compress.core.numerics.affine import dequantize, symmetric_zero
from compress.core.numerics.packing import unpack_int32, unpack_zero
from compress.core.safetensors_file import TensorEntry, read_header, read_tensor
from compress.core.types import QTensor, Scheme

TOLERANCE = 1e-3  # float32 sums of a few thousand terms, two orders of the same arithmetic
SUFFIXES = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


def check_stored(out: Path) -> dict[str, Any]:
    """Decode every packed layer of `out` with compressed-tensors and with our own code.

    Returns a line for the record. Raises VerificationError naming the first layer that differs.
    """
    entries = read_index(out)
    names = sorted(name.removesuffix(".weight_scale") for name in entries if name.endswith(".weight_scale"))
    decoder = Decoder(out)
    if not decoder.groups or not names:
        return {"check": "no packed layer to decode", "layers": 0, "passed": not names}
    for name in names:
        stored, scheme = decoder.stored(name)
        theirs = decoder.weight(name)
        ours = _decode(stored, scheme.weights)
        if not torch.equal(theirs, ours):
            worst = float((theirs - ours).abs().max())
            raise VerificationError(f"{name} decodes differently in compressed-tensors (by {worst:.3g}); report this")
    return {
        "check": "packed layers decoded by compressed-tensors",
        "layers": len(names),
        "difference": 0.0,
        "passed": True,
    }


class Decoder:
    """compressed-tensors' own decompressor over the files of a folder, one module at a time."""

    def __init__(self, folder: Path) -> None:
        """Read the index and the config; no weight."""
        from compressed_tensors.quantization import QuantizationConfig

        raw = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
        self.entries = read_index(folder)
        known = {key: value for key, value in (raw or {}).items() if key != "dequantize"}
        self.groups: dict[str, Any] = dict(QuantizationConfig.model_validate(known).config_groups) if raw else {}

    def stored(self, name: str) -> tuple[dict[str, Tensor], Any]:
        """The stored tensors of the module `name` on disk, and the scheme that config.json gives it."""
        found = {s: read_tensor(self.entries[f"{name}.{s}"]) for s in SUFFIXES if f"{name}.{s}" in self.entries}
        named = (group for group in self.groups.values() if name in group.targets)
        return found, next(named, self.groups["group_0"])

    def weight(self, name: str) -> Tensor:
        """The decoded weight (O, I) of the module `name` on disk, float32."""
        from compressed_tensors.compressors import BaseCompressor

        stored, scheme = self.stored(name)
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        decoded: Tensor = compressor.decompress(dict(stored), scheme)["weight"]
        return decoded.float()


def _decode(stored: dict[str, Tensor], arguments: Any) -> Tensor:
    scale = stored["weight_scale"]
    dtype = str(scale.dtype).removeprefix("torch.")
    if "weight" in stored:  # int-quantized
        scheme = Scheme("int", arguments.num_bits, -1, True, dtype)
        codes = (stored["weight"].to(torch.int16) + symmetric_zero(scheme)).to(torch.uint8)
        return dequantize(QTensor(codes, scale.float(), None, scheme)).to(scale.dtype).float()
    rows, columns = (int(n) for n in stored["weight_shape"])
    group = arguments.group_size if arguments.strategy == "group" else -1
    scheme = Scheme("int", arguments.num_bits, group, arguments.symmetric, dtype)
    packed_zero = stored.get("weight_zero_point")
    zero = unpack_zero(packed_zero, arguments.num_bits, rows) if packed_zero is not None else None
    codes = unpack_int32(stored["weight_packed"], arguments.num_bits, columns)
    weight = dequantize(QTensor(codes, scale.float(), zero, scheme))
    # compressed-tensors multiplies in the dtype of the scales; the product is rounded once, as ours is here
    return weight.to(scale.dtype).float()


def compare_whole(out: Path, probe: Path) -> dict[str, Any]:
    """Open `out` with transformers in a fresh process and compare with the outputs kept in `probe`.

    Returns a line for the record, `passed` False when the largest difference is above TOLERANCE.
    Raises VerificationError when the artifact cannot be opened.
    """
    command = [sys.executable, "-m", "export.verify", str(out), str(probe)]
    environment = child_environment() | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums in the same order
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if run.returncode != 0:
        said = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerificationError(f"transformers cannot open {out}: {said}")
    line: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return line


def compare_opened(model: Any, probe: dict[str, TensorEntry]) -> dict[str, Any]:
    """Compare the outputs of a loaded artifact with those kept in `probe`; a line for the record.

    model: in float32, eval mode. probe: entries `input.NAME` (B, ...) and `output`, (b, n, V or D) or (b, labels), of
    the first b rows and n positions; see `read_header`.
    """
    import transformers

    expected = read_tensor(probe["output"])
    inputs = {name.removeprefix("input."): read_tensor(e) for name, e in probe.items() if name != "output"}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = torch.arange(expected.shape[1])
    with torch.no_grad():
        output = model(**inputs)
    got = next(v for v in output.to_tuple() if isinstance(v, Tensor) and v.is_floating_point())
    got = got[: expected.shape[0], : expected.shape[1]].float()
    same = got.shape == expected.shape
    difference = float((got - expected).abs().max()) if same else float("inf")
    return {
        "check": "outputs of from_pretrained in float32",
        "runtime": f"transformers {transformers.__version__}",
        "difference": difference,
        "tolerance": TOLERANCE,
        "top1_agreement": float((got.argmax(-1) == expected.argmax(-1)).float().mean()) if same else 0.0,
        "positions": int(expected.shape[1]) if expected.ndim > 2 else 1,
        "passed": difference <= TOLERANCE,
    }


def open_plainly(out: Path, model_class: str) -> Any:
    """The artifact as plain transformers opens it, in float32, by the class that was compressed.

    A class that transformers does not have came with the model, and its code was trusted when it was compressed.
    """
    import transformers

    if hasattr(transformers, model_class):
        opener, trusted = getattr(transformers, model_class), False
    else:
        brought = json.loads((out / "config.json").read_text(encoding="utf-8")).get("auto_map") or {}
        causal = "AutoModelForCausalLM" in brought
        opener, trusted = (transformers.AutoModelForCausalLM if causal else transformers.AutoModel), True
    kind = {"trust_remote_code": True} if trusted else {}
    return opener.from_pretrained(out, dtype=torch.float32, local_files_only=True, **kind).eval()


def main(arguments: list[str]) -> int:
    """`python -m export.verify OUT PROBE`: one JSON line on stdout; the probe's metadata names the model's class."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    out, probe = Path(arguments[0]), Path(arguments[1])
    with safe_open(probe, "pt") as file:
        model_class = file.metadata()["model_class"]
    line = compare_opened(open_plainly(out, model_class), read_header(probe))
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
