"""Nodes that carry a layer's name become operators that hold its weight: codes, scales and zero points as they are.

Weights alone in codes: com.microsoft MatMulNBits, blocks of a power of two; a group or row that is longer is several
blocks that repeat its scale, which is the same numbers. Codes of 3 bits lie in 4, of 5 and 6 in 8.
Int8 inputs: the input is rounded once for all layers that read it, the product is one of integers. A static grid is
QuantizeLinear and DequantizeLinear, which onnxruntime fuses; a grid for each token is max |x| / 127.5 of the row and a
QuantizeLinear of rows as blocks, MatMulIntegerToFloat with the scales of the weight's rows, and the token's scale
behind it; a grid for the whole tensor is the same with one scale, or DynamicQuantizeLinear where it has a zero point.
Int8 embeddings: rows of codes are gathered, then multiplied by their scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compress.core.numerics.activation import Grid
from compress.core.numerics.affine import symmetric_zero
from compress.core.types import QTensor
from export.onnxfile.graph import DOMAIN, EMBEDDING
from export.source import Coded, Source

MS = "com.microsoft"
Array = npt.NDArray[Any]
TINY = 1e-37  # a row of zeros has some scale; its codes are zeros whatever it is
HALF = 127.5


@dataclass
class Writer:
    """Collects the nodes and weights of a graph that is being rewritten.

    accuracy_level: of MatMulNBits. packed: names of the layers whose codes are in it. float_weights: no codes at all.
    signed: codes on static grids are int8, else uint8. fused: attention of encoders is one operator.
    initializers: weights of this graph, tensors: of all graphs of the model. rows: of values of this graph, their axes
    but the last, where all have names. rounded: what inputs were rounded to, by input and grid.
    """

    source: Source
    accuracy_level: int
    float_weights: bool = False
    signed: bool = False
    fused: bool = True
    nodes: list[Any] = field(default_factory=list)
    initializers: dict[str, Any] = field(default_factory=dict)
    packed: dict[str, None] = field(default_factory=dict)
    rounded: dict[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)
    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    count: int = 0

    def again(self) -> Writer:
        """For another graph of the same model: weights and names of packed layers are shared, nodes are not."""
        return replace(self, nodes=[], initializers={}, rounded={}, rows={}, tensors=self.tensors, packed=self.packed)

    def node(self, kind: str, inputs: list[str], domain: str = "", out: str = "", attributes: Any = None) -> str:
        """Add an operator with one output; its name. attributes: name -> value."""
        from onnx import helper

        self.count += 1
        made = out or f"c{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [made], f"compress_{kind}_{self.count}", domain=domain,
                                           **(attributes or {})))  # fmt: skip
        return made

    def weight(self, name: str, make: Callable[[], Array]) -> str:
        """Add a weight unless it is there; its name."""
        if name not in self.initializers:
            from onnx import numpy_helper

            if name not in self.tensors:
                self.tensors[name] = numpy_helper.from_array(np.asarray(make(), order="C"), name)
            self.initializers[name] = self.tensors[name]
        return name


def rewrite(made: Any, writer: Writer) -> None:
    """Replace every node of ours in the ModelProto `made`, in place."""
    from onnx import helper

    writer.rows.update(_rows(made))
    for node in made.graph.node:
        if node.domain == DOMAIN:
            name = node.attribute[0].s.decode()
            write = _embedding if node.op_type == EMBEDDING else linear
            write(writer, name, node.input[0], node.output[0])
        else:
            writer.nodes.append(node)
    kept = [tensor for tensor in made.graph.initializer if tensor.name not in writer.initializers]
    nodes = list(writer.nodes)
    del made.graph.node[:], made.graph.initializer[:], made.opset_import[:]
    made.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    made.graph.initializer.extend(tensor for tensor in kept if tensor.name in read)
    made.graph.initializer.extend(writer.initializers.values())
    domains = {node.domain for node in nodes} - {""}
    from export.onnxfile.graph import OPSET

    made.opset_import.extend([helper.make_opsetid("", OPSET), *(helper.make_opsetid(d, 1) for d in sorted(domains))])


def _rows(made: Any) -> dict[str, tuple[str, ...]]:
    """The axes of each value but the last one, by name or size, where all are known."""
    found = {}
    for value in (*made.graph.input, *made.graph.value_info):
        axes = value.type.tensor_type.shape.dim[:-1]
        names = tuple(axis.dim_param or (str(axis.dim_value) if axis.HasField("dim_value") else "") for axis in axes)
        if names and all(names):
            found[value.name] = names
    return found


def coded_of(source: Source, name: str) -> Coded | None:
    """The codes that the module `name` computes with: its own, or those of the embedding it is tied to."""
    if name in source.coded:
        return source.coded[name]
    layer = next((layer for layer in source.layers if layer.name == name), None)
    if layer is None:  # another name of the embedding
        return source.by_param.get(param_of(source, name))
    if layer.tied_to is None:
        return None
    return source.by_param.get(layer.tied_to) or source.by_param.get(layer.param)


def param_of(source: Source, name: str) -> str:
    """The parameter of the module `name`, by the first of its names."""
    parameter = source.model.get_parameter(f"{name}.weight")
    found: str = next(n for n, p in source.model.named_parameters() if p is parameter)
    return found


def _embedding(writer: Writer, name: str, ids: str, out: str) -> None:
    coded = None if writer.float_weights else coded_of(writer.source, name)
    if coded is None:
        param = param_of(writer.source, name)
        table = writer.weight(param, lambda: writer.source.weight(param).numpy())
        writer.node("Gather", [table, ids], out=out)
        return
    writer.packed[coded.layer.name] = None
    rows, columns = coded.layer.shape
    if any(layer.tied_to == coded.layer.param for layer in writer.source.layers):  # the head reads the same blocks
        codes, scales, zero = _blocks(writer, coded)
        blocks = -(-columns // block_size(-1, columns))
        codes = writer.node("Reshape", [codes, _ints(writer, [rows, -1])])
        by_row = writer.node("Reshape", [scales, _ints(writer, [rows, blocks])])
        scales = writer.node("Slice", [by_row, *(_ints(writer, [n]) for n in (0, 1, 1))])
    else:
        codes, scales, zero = *_row_weight(writer, coded, turned=False), 0
        scales = writer.node("Reshape", [scales, _ints(writer, [rows, 1])])
    found = writer.node("Cast", [writer.node("Gather", [codes, ids])], attributes={"to": 1})
    if zero:
        found = writer.node("Sub", [found, _float(writer, float(zero))])
        found = writer.node("Slice", [found, _ints(writer, [0]), _ints(writer, [columns]), _ints(writer, [-1])])
    writer.node("Mul", [found, writer.node("Gather", [scales, ids])], out=out)


def linear(writer: Writer, name: str, x: str, out: str) -> None:
    """Add the nodes that multiply `x` with the weight of the layer `name`, as `out`."""
    coded = None if writer.float_weights else coded_of(writer.source, name)
    if coded is None:
        _dense(writer, name, x, out)
        return
    writer.packed[coded.layer.name] = None
    if coded.activation is None or coded.scheme.group_size != -1:
        if coded.activation is not None:
            x = _rounded_floats(writer, x, coded)
        _matmul_nbits(writer, coded, x, out)
    elif not coded.activation.dynamic:
        _static(writer, coded, x, out)
    elif coded.activation.symmetric:
        _dynamic(writer, coded, x, out)
    else:
        _dynamic_tensor(writer, coded, x, out)


def _dense(writer: Writer, name: str, x: str, out: str) -> None:
    param = param_of(writer.source, name)
    tied = any(layer.container == "embedding" and layer.param == param for layer in writer.source.layers)
    if tied:  # stored once, as the embedding has it; the runtime transposes it when it opens the file
        table = writer.weight(param, lambda: writer.source.weight(param).numpy())
        transposed = writer.node("Transpose", [table], attributes={"perm": [1, 0]})
    else:
        transposed = writer.weight(f"{param}.T", lambda: writer.source.weight(param).T.numpy())
    writer.node("MatMul", [x, transposed], out=out)


def block_size(group: int, columns: int) -> int:
    """Inputs in a block of MatMulNBits for groups of `group` (-1: rows): the largest power of two, 128 at most, that
    divides it; 0 when there is none of 16 and more."""
    whole = group == -1 or group >= columns
    size = columns if whole else group
    found = min(size & -size, 128)
    if whole and found < 16:  # the whole row has one scale: blocks may end anywhere
        return 16
    return found if found >= 16 else 0


def held_bits(bits: int) -> int:
    """Bits that a code of `bits` takes in MatMulNBits."""
    return next(held for held in (2, 4, 8) if held >= bits)


def _matmul_nbits(writer: Writer, coded: Coded, x: str, out: str) -> None:
    rows, columns = coded.layer.shape
    codes, scales, _ = _blocks(writer, coded)
    inputs = [x, codes, scales]
    if f"{coded.layer.name}.zeros" in writer.initializers:
        inputs.append(f"{coded.layer.name}.zeros")
    writer.node(
        "MatMulNBits",
        inputs,
        MS,
        out,
        {
            "K": columns,
            "N": rows,
            "bits": held_bits(coded.scheme.bits),
            "block_size": block_size(coded.scheme.group_size, columns),
            "accuracy_level": writer.accuracy_level,
        },
    )


def _blocks(writer: Writer, coded: Coded) -> tuple[str, str, int]:
    """The names of codes (O, blocks, bytes of a block) and scales (O * blocks,), zero points beside them where there
    are any; the code of 0.0 where there are none."""
    name, columns = coded.layer.name, coded.layer.shape[1]
    size, bits = block_size(coded.scheme.group_size, columns), held_bits(coded.scheme.bits)
    kept: list[QTensor] = []

    def q() -> QTensor:
        if not kept:
            kept.append(writer.source.codes(name))
        return kept[0]

    def by_block(values: Tensor) -> Tensor:
        """A value per group (O, G) as one per block (O, blocks)."""
        group = columns if coded.scheme.group_size == -1 else coded.scheme.group_size
        starts = torch.arange(0, columns, size)
        return values[:, torch.div(starts, group, rounding_mode="floor")]

    writer.weight(f"{name}.codes", lambda: pack_blocks(q().codes, bits, size))
    writer.weight(f"{name}.scales", lambda: by_block(q().scale).reshape(-1).float().numpy())
    centre = symmetric_zero(coded.scheme)
    if not coded.scheme.symmetric or coded.scheme.bits != bits:

        def zeros() -> Array:
            found = q().zero
            held = torch.full_like(q().scale, centre, dtype=torch.uint8) if found is None else found.to(torch.uint8)
            return pack_row(by_block(held), bits)

        writer.weight(f"{name}.zeros", zeros)
    return f"{name}.codes", f"{name}.scales", centre


def pack_blocks(codes: Tensor, bits: int, size: int) -> Array:
    """Codes (O, I) as MatMulNBits reads them: (O, blocks, size * bits / 8) uint8, the first code in the lowest bits."""
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % size))
    return pack_row(padded, bits).reshape(rows, -1, size * bits // 8)


def pack_row(codes: Tensor, bits: int) -> Array:
    """Codes (O, n) of 2, 4 or 8 bits as bytes (O, ceil(n * bits / 8)), the first in the lowest bits."""
    per = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % per)).numpy().astype(np.uint8)
    found = np.zeros((padded.shape[0], padded.shape[1] // per), np.uint8)
    for place in range(per):
        found |= padded[:, place::per] << (bits * place)
    return found


def _row_weight(writer: Writer, coded: Coded, turned: bool = True) -> tuple[str, str]:
    """The names of int8 weights (I, O), or (O, I) unless `turned`, and of their scales by row (O,)."""
    name = coded.layer.name

    def whole() -> Array:
        q = writer.source.codes(name)
        codes = (q.codes.to(torch.int16) - symmetric_zero(q.scheme)).to(torch.int8)
        return (codes.T if turned else codes).numpy()

    return (
        writer.weight(f"{name}.int8", whole),
        writer.weight(f"{name}.scales", lambda: writer.source.codes(name).scale.reshape(-1).float().numpy()),
    )


def _static(writer: Writer, coded: Coded, x: str, out: str) -> None:
    grid = writer.source.input_grid(coded.layer.name)
    assert grid is not None
    weight, scales = _row_weight(writer, coded)
    zeros = writer.weight(f"zeros.{coded.layer.shape[0]}", lambda: np.zeros(coded.layer.shape[0], np.int8))
    whole = writer.node("DequantizeLinear", [weight, scales, zeros], attributes={"axis": 1})
    writer.node("MatMul", [_on_grid(writer, coded, x, grid), whole], out=out)


def _on_grid(writer: Writer, coded: Coded, x: str, grid: Grid) -> str:
    """`x` rounded to a static grid: floats.

    onnxruntime fuses a DequantizeLinear that one node alone reads, and where several layers share the codes unsigned
    ones only: these are 128 higher, and so is their zero point.
    """
    key = (x, float(grid.scale), int(grid.zero) if grid.zero is not None else 0)
    if key not in writer.rounded:
        name = coded.layer.name
        scale = writer.weight(f"{name}.input_scale", lambda: np.asarray(key[1], np.float32))
        kind, above = (np.int8, 0) if writer.signed else (np.uint8, 128)
        zero = writer.weight(f"{name}.input_zero_point", lambda: np.asarray(key[2] + above, kind))
        writer.rounded[key] = (writer.node("QuantizeLinear", [x, scale, zero]), scale, zero)
    return writer.node("DequantizeLinear", list(writer.rounded[key]))


def _codes_of_input(writer: Writer, x: str, coded: Coded) -> tuple[str, str]:
    """(codes uint8 of the shape of `x`, scale (..., 1) or of one value) of a symmetric grid made from `x`.

    Codes are 128 higher than int8 ones: onnxruntime's kernels for unsigned inputs are ten times faster. A row is one
    block of QuantizeLinear: along the first axis of a matrix, which is the same, takes half as long again.
    """
    assert coded.activation is not None
    key = (x, coded.activation.strategy)
    if key not in writer.rounded:
        by_row = coded.activation.strategy == "token"
        axes, keep = [_ints(writer, [-1])] if by_row else [], {"keepdims": int(by_row)}
        low, high = (writer.node(kind, [x, *axes], attributes=keep) for kind in ("ReduceMin", "ReduceMax"))
        # of |x|, which would be written out first
        largest = writer.node("Max", [high, writer.node("Neg", [low]), _float(writer, HALF * TINY)])
        scale = writer.node("Div", [largest, _float(writer, HALF)])
        blocks = {"axis": -1, "block_size": coded.layer.shape[1]} if by_row else {}
        zeros = _centres(writer, x, scale) if by_row else _centre(writer)
        writer.rounded[key] = (writer.node("QuantizeLinear", [x, scale, zeros], attributes=blocks), scale)
    codes, scale = writer.rounded[key]
    return codes, scale


def _centres(writer: Writer, x: str, scale: str) -> str:
    """The code of 0.0 for every row of `x`, whose scales they are: the same for all inputs of as many rows."""
    key = ("centres", *writer.rows.get(x, (x,)))
    if key not in writer.rounded:
        writer.rounded[key] = (writer.node("Expand", [_centre(writer), writer.node("Shape", [scale])]),)
    return writer.rounded[key][0]


def _dynamic(writer: Writer, coded: Coded, x: str, out: str) -> None:
    codes, scale = _codes_of_input(writer, x, coded)
    weight, scales = _row_weight(writer, coded)
    product = writer.node("MatMulIntegerToFloat", [codes, weight, _float(writer, 1.0), scales, _centre(writer)], MS)
    writer.node("Mul", [product, scale], out=out)


def _dynamic_tensor(writer: Writer, coded: Coded, x: str, out: str) -> None:
    """One asymmetric grid for the whole tensor, as onnxruntime's own dynamic quantization makes it."""
    from onnx import helper

    key = (x, "tensor-asym")
    if key not in writer.rounded:
        made = tuple(f"c{writer.count}_{part}" for part in ("codes", "scale", "zero"))
        writer.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], list(made), f"compress_{made[0]}"))
        writer.rounded[key] = made
        writer.count += 1
    codes, scale, zero = writer.rounded[key]
    weight, scales = _row_weight(writer, coded)
    product = writer.node("Cast", [writer.node("MatMulInteger", [codes, weight, zero])], attributes={"to": 1})
    writer.node("Mul", [product, writer.node("Mul", [scale, scales])], out=out)


def _rounded_floats(writer: Writer, x: str, coded: Coded) -> str:
    """`x` as its int8 codes stand for it, for weights in groups: their product is one of floats."""
    assert coded.activation is not None
    if not coded.activation.dynamic:
        grid = writer.source.input_grid(coded.layer.name)
        assert grid is not None
        return _on_grid(writer, coded, x, grid)
    key = (x, coded.activation.strategy, "floats")
    if key not in writer.rounded:
        codes, scale = _codes_of_input(writer, x, coded)
        centred = writer.node("Sub", [writer.node("Cast", [codes], attributes={"to": 1}), _float(writer, 128.0)])
        writer.rounded[key] = (writer.node("Mul", [centred, scale]),)
    return writer.rounded[key][0]


def _ints(writer: Writer, values: list[int]) -> str:
    return writer.weight(f"ints.{'.'.join(map(str, values))}", lambda: np.asarray(values, np.int64))


def _float(writer: Writer, value: float) -> str:
    return writer.weight(f"float.{value:g}", lambda: np.asarray(value, np.float32))


def _centre(writer: Writer) -> str:
    """The code of 0.0 among unsigned codes."""
    return writer.weight("uint8.128", lambda: np.asarray(128, np.uint8))
