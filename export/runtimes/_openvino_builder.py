"""Makes an IR with our codes in OpenVINO's own environment: `_openvino_builder.py CHECKPOINT CODES TASK FOLDER`.

optimum-intel converts the checkpoint, whose weights are float32 and exactly what the codes stand for; every constant of
the graph that is one of them, found by its value, then becomes Constant -> Convert -> Subtract -> Multiply -> Reshape,
the pattern that OpenVINO's plugins decompress inside their matrix products. CODES: a safetensors file with
`NAME.codes` uint8 (O, I), `NAME.scale` (O, G) and, where there are any, `NAME.zero` uint8 (O, G); its metadata hold
`NAME` -> sha256 of the weight, bits and group size.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

_ALIVE: list[Any] = []
"""Arrays whose memory OpenVINO's constants share until they are written."""
SMALL = 4096  # elements: what stays float32 whatever it holds
OPTIONS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}
"""No int8 inputs and no int8 cache unless whoever opens it asks for them: the CPU plugin takes both by itself."""


def main() -> int:
    """Build. Returns 0; whatever goes wrong is raised."""
    here = Path(__file__).resolve().parent  # first on the path of a script: our own files would hide the packages
    sys.path[:] = [path for path in sys.path if not path or Path(path).resolve() != here]
    checkpoint, codes, task, folder = sys.argv[1:]
    import openvino as ov
    from optimum.exporters.openvino import main_export
    from optimum.intel.openvino import OVConfig

    whole = Path(folder) / "float"
    main_export(checkpoint, whole, task=task, ov_config=OVConfig(dtype="fp32"), convert_tokenizer=False)
    model = ov.Core().read_model(whole / "openvino_model.xml")
    left = _rewrite(model, Path(codes))
    if left:
        raise ValueError(f"the converted graph has no matrix with the weight of {left[0]}")
    for name, value in OPTIONS.items():
        model.set_rt_info(value, ["runtime_options", name])
    ov.save_model(model, Path(folder) / "openvino_model.xml", compress_to_fp16=False)
    return 0


def _rewrite(model: Any, codes: Path) -> list[str]:
    """Replace constants in place; the layers that are in none."""
    import numpy as np
    from safetensors import safe_open

    with safe_open(str(codes), "np") as file:
        layers = {said["sha256"]: (name, said) for name, said in json.loads(file.metadata()["layers"]).items()}
        found = set()
        for node in list(model.get_ordered_ops()):
            if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "f32":
                continue
            value = np.array(node.data)
            name, said = layers.get(hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest(), (None, None))
            if value.ndim == 2 and name is not None and said is not None:
                parts = {part: file.get_tensor(f"{name}.{part}") for part in said["parts"]}
                made = _packed(name, parts, said)
                found.add(name)
            elif value.size >= SMALL:
                made = _narrow(node.get_friendly_name(), value)
            else:
                made = None
            if made is not None:
                for target in list(node.output(0).get_target_inputs()):
                    target.replace_source_output(made.output(0))
    return sorted({name for name, _ in layers.values()} - found)


def _packed(name: str, parts: dict[str, Any], said: dict[str, Any]) -> Any:
    """What decompresses to the weight: signed codes without a zero point where the scheme is symmetric."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    codes, scale, zero = parts["codes"], parts["scale"], parts.get("zero")
    rows, columns = codes.shape
    bits, size = 4 if said["bits"] <= 4 else 8, said["group_size"]
    shape = [rows, columns // size, size]
    if zero is None:
        codes = codes.astype(np.int16) - (1 << (said["bits"] - 1))
    kind = {(4, True): ov.Type.i4, (8, True): ov.Type.i8, (4, False): ov.Type.u4, (8, False): ov.Type.u8}
    stored = kind[bits, zero is None]
    half = scale.astype(np.float16)
    exact = said["bits"] <= 4 and bool((half.astype(np.float32) == scale).all())
    dtype = ov.Type.f16 if exact else ov.Type.f32
    value = ops.convert(_constant(codes.reshape(shape), stored, f"{name}/codes"), dtype.get_type_name())
    if zero is not None:
        points = ops.convert(_constant(zero[:, :, None], stored, f"{name}/zero"), dtype.get_type_name())
        value = ops.subtract(value, points)
    factor = _constant((half if exact else scale)[:, :, None], dtype, f"{name}/scale")
    value = ops.multiply(value, factor)
    value = ops.reshape(value, ops.constant(np.array([rows, columns], np.int64)), False)
    if exact:
        value = ops.convert(value, "f32")
    value.set_friendly_name(f"{name}/weight")
    return value


def _constant(value: Any, kind: Any, name: str) -> Any:
    """A constant of any type; two codes share a byte at 4 bits, the first in the lower half."""
    import numpy as np
    import openvino as ov

    if kind in (ov.Type.u4, ov.Type.i4):
        flat = value.reshape(-1).astype(np.int16) & 15
        flat = np.pad(flat, (0, len(flat) % 2))
        raw = (flat[::2] | flat[1::2] << 4).astype(np.uint8)
        tensor = ov.Tensor(raw, ov.Shape(list(value.shape)), kind)
    else:
        plain = {"f16": np.float16, "f32": np.float32, "i8": np.int8, "u8": np.uint8}[kind.get_type_name()]
        raw = np.ascontiguousarray(value.astype(plain))
        tensor = ov.Tensor(raw)
    _ALIVE.append(raw)
    made = ov.op.Constant(tensor)
    made.set_friendly_name(name)
    return made


def _narrow(name: str, value: Any) -> Any:
    """The 16 bits that hold a float32 constant exactly, and back; None where none do."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    words = value.view(np.uint32)
    if not (words & 0xFFFF).any():
        raw = np.ascontiguousarray((words >> 16).astype(np.uint16))
        tensor = ov.Tensor(raw, ov.Shape(list(value.shape)), ov.Type.bf16)
    else:
        with np.errstate(over="ignore"):
            raw = value.astype(np.float16)
        if not (raw.astype(np.float32) == value).all():
            return None
        tensor = ov.Tensor(raw)
    _ALIVE.append(raw)
    stored = ov.op.Constant(tensor)
    stored.set_friendly_name(f"{name}/16")
    return ops.convert(stored, "f32")


if __name__ == "__main__":
    sys.exit(main())
